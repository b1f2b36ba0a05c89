"""Joules per inference from outside the machine: a power meter's log laid over a run's windows, or assumed watts.

A meter sees the whole machine, idle parts included; nothing is subtracted. The estimate is never made unasked.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..core import DataError, FileError
from .schema import read_results

# Fewer readings than four in a window say too little about what the machine drew in it.
_READINGS_PER_WINDOW = 4


@final
@dataclass(frozen=True)
class PowerLog:
    """What a meter wrote down.

    Attributes:
        name: of the file.
        time: `(n,)` float64, UTC seconds since 1970, never falling.
        watts: `(n,)` float64.
    """

    name: str
    time: NDArray[np.float64]
    watts: NDArray[np.float64]

    def joules(self, start: float, end: float) -> float:
        """Energy between two moments: trapezoids between readings, interpolated at both ends.

        Args:
            start, end: UTC seconds since 1970.

        Raises:
            DataError: the log does not cover the window, or has too few readings in it.
        """
        self._require_cover(start, end)
        before, after = self.time[:-1], self.time[1:]
        left, right = np.clip(before, start, end), np.clip(after, start, end)
        inside = right > left
        span = np.where(inside, after - before, 1.0)
        slope = np.diff(self.watts) / span
        middle = self.watts[:-1] + slope * ((left + right) / 2 - before)
        return float((middle * (right - left))[inside].sum())

    def _require_cover(self, start: float, end: float) -> None:
        if self.time[0] > start or self.time[-1] < end:
            raise DataError(
                f"{self.name} must cover the whole measurement: it runs from {_clock(self.time[0])} to "
                f"{_clock(self.time[-1])}, a window of the run from {_clock(start)} to {_clock(end)}. Check the "
                "meter's clock; times without a zone are read as UTC."
            )
        first = int(np.searchsorted(self.time, start, side="right")) - 1
        last = int(np.searchsorted(self.time, end, side="left"))
        widest = float(np.diff(self.time[first : last + 1]).max())
        if widest > (end - start) / _READINGS_PER_WINDOW:
            raise DataError(
                f"{self.name} does not cover the window from {_clock(start)} to {_clock(end)}: its readings there are "
                f"up to {widest:.3g} s apart, at most {(end - start) / _READINGS_PER_WINDOW:.3g} s is needed. Let the "
                "meter write more often, or raise measure.energy_seconds."
            )


def read_power_log(path: str | Path) -> PowerLog:
    """Read a CSV file with the columns `time` (ISO 8601, or seconds since 1970) and `watts`; others are ignored.

    Raises:
        FileError: the file cannot be read.
        DataError: a column is missing, a row is malformed, a value is not finite, or the times fall; names the line.
    """
    goal = Path(path)
    try:
        with goal.open(newline="", encoding="utf-8-sig") as stream:
            readings = _readings(goal.name, csv.reader(stream, strict=True))
    except OSError as error:
        raise FileError(f"{goal} cannot be read: {error.strerror or error}. Check the path.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{goal.name} is not a CSV file in UTF-8: {error}.") from error
    if len(readings) < 2:
        raise DataError(f"{goal.name} must hold at least two readings, got {len(readings)}.")
    return PowerLog(goal.name, np.array([at for at, _ in readings]), np.array([watts for _, watts in readings]))


def with_power_log(results: Mapping[str, Any], log: PowerLog) -> dict[str, Any]:
    """The results with the meter's joules per inference of every window.

    Raises:
        DataError: the run recorded no windows, or the log does not cover one.
        FileError: the results have another form.
    """
    windows = read_results(results).energy_windows
    if not windows:
        raise DataError(
            "The run recorded no windows to lay a power log over. Set measure.energy_seconds in the recipe (30, say) "
            "and run it again while the meter writes; where the processor's own counter can be read it is used instead."
        )
    spent = [(w.batch, w.name, log.joules(w.start, w.end) / w.items) for w in windows]
    return _with_energy(results, f"power meter: {log.name}", spent)


def with_assumed_watts(results: Mapping[str, Any], watts: float) -> dict[str, Any]:
    """The results with an estimate: a constant power times the median time of each candidate, marked as an estimate.

    Args:
        results: the content of `results.json`.
        watts: what the machine is assumed to draw while it works.

    Raises:
        DataError: not a power above 0, or nothing was timed.
        FileError: the results have another form.
    """
    if not (math.isfinite(watts) and watts > 0):
        raise DataError(f"An assumed power is a number of watts above 0, got {watts}.")
    timed = [row for row in read_results(results).latency if row.p50_s]
    if not timed:
        raise DataError("An estimate of energy needs measured times, and this run holds none.")
    spent = [(row.batch, row.name, watts * (row.p50_s or 0.0) / row.batch) for row in timed]
    return _with_energy(results, f"estimate ({watts:g} W assumed)", spent)


def _with_energy(results: Mapping[str, Any], source: str, spent: list[tuple[int, str, float]]) -> dict[str, Any]:
    """A copy of the results with (batch, name, joules per inference); the plain figures are the smallest batch's."""
    by_batch: dict[str, dict[str, float]] = {}
    for batch, name, joules in sorted(spent, key=lambda item: item[0]):
        by_batch.setdefault(str(batch), {})[name] = joules
    energy = {"source": source, "joules_per_inference": next(iter(by_batch.values())), "by_batch": by_batch}
    clocked = results.get("measured")
    if isinstance(clocked, Mapping):
        return {**results, "measured": {**clocked, "energy": energy}}
    return {**results, "energy": energy}


def _readings(name: str, rows: Any) -> list[tuple[float, float]]:
    head = [text.strip().lower() for text in next(rows, [])]
    for wanted in ("time", "watts"):
        if head.count(wanted) != 1:
            raise DataError(
                f"{name} needs one column {wanted!r} in its first line, got {', '.join(head) or 'an empty file'}."
            )
    at_column, watts_column = head.index("time"), head.index("watts")
    found: list[tuple[float, float]] = []
    for row in rows:
        if not row:
            continue
        place = f"{name}, line {rows.line_num}"
        # A decimal comma shows as one cell too many; taking the first part would be wrong in silence.
        if len(row) != len(head):
            raise DataError(f"{place}: a row has {len(head)} cells as the first line does, got {len(row)}.")
        at, watts = _moment(row[at_column].strip(), place), _watts(row[watts_column].strip(), place)
        if found and at < found[-1][0]:
            raise DataError(
                f"{place}: times must not fall, got {_clock(at)} after {_clock(found[-1][0])}. Sort the file."
            )
        found.append((at, watts))
    return found


def _moment(text: str, place: str) -> float:
    try:
        at = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise DataError(f"{place}: a time is ISO 8601 or seconds since 1970, got {text!r}.") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    # Past the year 9999 (and before the first) it is no time in seconds; milliseconds are the usual cause.
    if not 0 <= at < 253402300800:
        raise DataError(f"{place}: a time is ISO 8601 or seconds since 1970 (not milliseconds), got {text!r}.")
    return at


def _watts(text: str, place: str) -> float:
    try:
        watts = float(text)
    except ValueError:
        raise DataError(f"{place}: watts are a number, got {text!r}.") from None
    if not (math.isfinite(watts) and watts >= 0):
        raise DataError(f"{place}: watts are a finite number, 0 or more, got {text!r}.")
    return watts


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
