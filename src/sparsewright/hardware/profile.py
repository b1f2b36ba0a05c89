"""A profile: measured costs of layers on one machine, dated, with the machine's fingerprint; a JSON file that travels.

Every cost was timed side by side with torch's dense linear, so a row holds both; the ratio is what may be compared
between rows, and seconds are brought to one clock through the dense row of the same shape and token count.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike
from types import MappingProxyType
from typing import Any, final

from ..core import (
    VALUE_BITS,
    AbstractPattern,
    Dense,
    PatternError,
    ProfileError,
    ValueType,
    parse_pattern,
    read_json,
    write_json,
)

Shape = tuple[int, int]
Key = tuple[Shape, str, str]

_VERSION = 1
_MOST_ROWS = 200_000
_LARGEST = 1 << 31
_DENSE = ("dense", "fp32")


@final
@dataclass(frozen=True)
class Cost:
    """What a layer costs on a target.

    Attributes:
        seconds: one call of the layer at the asked tokens.
        dense_seconds: torch's dense float32 linear of the same shape and tokens, from the same source.
        source: `measured`, `interpolated` (between two measured token counts) or `modelled`.
    """

    seconds: float
    dense_seconds: float
    source: str = "measured"

    @property
    def ratio(self) -> float:
        """Seconds of the layer / seconds of the dense layer; below 1 wins."""
        return self.seconds / self.dense_seconds


@final
@dataclass(frozen=True)
class CostRow:
    """One measurement.

    Attributes:
        shape: `(out, in)`.
        pattern: canonical text.
        value_dtype: `fp32`, `fp16` or `int8`.
        tokens: rows of the input.
        seconds: median per call.
        dense_seconds: median of torch's dense linear in the same interleaved run.
        low, high: quartiles of the seconds per call.
        rounds: how many samples the medians rest on.
    """

    shape: Shape
    pattern: str
    value_dtype: str
    tokens: int
    seconds: float
    dense_seconds: float
    low: float
    high: float
    rounds: int

    @property
    def key(self) -> Key:
        """What is looked up; token counts are interpolated between."""
        return (self.shape, self.pattern, self.value_dtype)


@final
@dataclass(frozen=True)
class Profile:
    """Measured costs of one machine at one thread count.

    Attributes:
        machine: plain data of `Machine.to_data()`, for the report.
        fingerprint: sha256 (hex) of what decides speed.
        versions: software that decides speed.
        created: ISO date and time (UTC) of the newest measurement.
        threads: intra-op threads.
        rows: the measurements.
    """

    machine: Mapping[str, Any]
    fingerprint: str
    versions: str
    created: str
    threads: int
    rows: tuple[CostRow, ...]
    _table: Mapping[Key, tuple[CostRow, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table: dict[Key, dict[int, CostRow]] = {}
        for row in self.rows:
            table.setdefault(row.key, {})[row.tokens] = row
        ordered = {key: tuple(rows[tokens] for tokens in sorted(rows)) for key, rows in table.items()}
        object.__setattr__(self, "_table", MappingProxyType(ordered))

    @property
    def shapes(self) -> list[Shape]:
        """Layer shapes that were measured, in order."""
        return list(dict.fromkeys(row.shape for row in self.rows))

    def tokens(self, shape: Shape, pattern: AbstractPattern, value_dtype: ValueType = "fp32") -> list[int]:
        """Token counts at which this choice was measured, ascending."""
        return [row.tokens for row in self._table.get(_key(shape, pattern, value_dtype), ())]

    def cost(self, shape: Shape, pattern: AbstractPattern, tokens: int, value_dtype: ValueType = "fp32") -> Cost:
        """Look a cost up; between measured token counts it is interpolated, beyond the largest it grows in proportion.

        Raises:
            ProfileError: this choice was not measured; the message says what was and how to measure.
        """
        key = _key(shape, pattern, value_dtype)
        rows = self._table.get(key)
        dense = self._table.get((tuple(shape), *_DENSE), ())  # type: ignore[arg-type]
        if not rows or not dense:
            raise ProfileError(self._missing(shape, pattern, value_dtype))
        if tokens < rows[0].tokens:
            raise ProfileError(
                f"{pattern} with {value_dtype} values on {shape} was measured from {rows[0].tokens} tokens upwards, "
                f"asked for {tokens}. Profile this token count too."
            )
        dense_s = _at(dense, tokens, lambda row: row.seconds)
        # Ratios are interpolated, not seconds: rows of different runs share no clock, ratios do not need one.
        seconds = dense_s * _ratio_at(rows, tokens)
        exact = any(row.tokens == tokens for row in rows)
        return Cost(seconds, dense_s, "measured" if exact else "interpolated")

    def _missing(self, shape: Shape, pattern: AbstractPattern, value_dtype: str) -> str:
        known = [key for key in self._table if key[0] == tuple(shape)]
        what = f"{pattern} with {value_dtype} values" if known else "the layer shape"
        seen = ", ".join(sorted({f"{key[1]} ({key[2]})" for key in known})) or ", ".join(map(str, self.shapes)) or "-"
        cpu = self.machine.get("cpu", "unknown machine")
        return (
            f"The profile of {cpu} lacks {what} {tuple(shape)}; it holds {seen}. Measure it on that machine with "
            f"`sparsewright profile --shapes {shape[0]}x{shape[1]} --out FILE.json`, or leave the choice out."
        )

    def merged(self, rows: Iterable[CostRow], created: str | None = None) -> "Profile":
        """A copy with further rows; newer rows replace older ones of the same choice and tokens."""
        kept = {(row.key, row.tokens): row for row in (*self.rows, *rows)}
        return Profile(
            self.machine, self.fingerprint, self.versions, created or now(), self.threads, tuple(kept.values())
        )

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "version": _VERSION,
            "kind": "sparsewright profile",
            "source": "measured",
            "machine": dict(self.machine),
            "fingerprint": self.fingerprint,
            "versions": self.versions,
            "created": self.created,
            "threads": self.threads,
            "rows": [_row_to_data(row) for row in self.rows],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file that travels."""
        write_json(path, self.to_data())

    @staticmethod
    def load(path: str | PathLike[str], max_age_days: float | None = None) -> "Profile":
        """Read what `save` wrote.

        Args:
            path: a JSON file.
            max_age_days: refuse an older profile; None takes any.

        Raises:
            FileError: missing or not JSON.
            ProfileError: not a profile, malformed, of a later version, or too old.
        """
        profile = Profile.from_data(read_json(path))
        if max_age_days is not None and age_days(profile.created) > max_age_days:
            raise ProfileError(
                f"The profile {path} is from {profile.created}, more than {max_age_days:g} days ago. "
                "Measure it again on its machine with `sparsewright profile --out FILE.json`."
            )
        return profile

    @staticmethod
    def from_data(data: Any) -> "Profile":
        """Check plain data against the list of what may be in a profile.

        Raises:
            ProfileError: anything else is in it.
        """
        if not isinstance(data, Mapping) or data.get("kind") != "sparsewright profile":
            raise ProfileError("This file is no profile. Make one with `sparsewright profile --out FILE.json`.")
        if data.get("version") != _VERSION:
            raise ProfileError(f"This release reads profiles of version {_VERSION}, got {data.get('version')!r}.")
        known = {"version", "kind", "source", "machine", "fingerprint", "versions", "created", "threads", "rows"}
        if set(data) != known or data["source"] != "measured":
            raise ProfileError(
                f"A profile has exactly the keys {', '.join(sorted(known))}, got {', '.join(sorted(map(str, data)))}."
            )
        rows = data["rows"]
        if not isinstance(rows, list) or len(rows) > _MOST_ROWS:
            raise ProfileError(f"The rows of a profile are a list of at most {_MOST_ROWS} measurements.")
        for name in ("fingerprint", "versions", "created"):
            if not isinstance(data[name], str) or len(data[name]) > 1000:
                raise ProfileError(f"The key {name!r} of a profile must be a short text.")
        age_days(data["created"])
        if not isinstance(data["machine"], Mapping):
            raise ProfileError("The key 'machine' of a profile must be a mapping.")
        return Profile(
            machine=dict(data["machine"]),
            fingerprint=data["fingerprint"],
            versions=data["versions"],
            created=data["created"],
            threads=_integer(data["threads"], "threads"),
            rows=tuple(_row_from_data(row, number) for number, row in enumerate(rows)),
        )


def now() -> str:
    """ISO date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def age_days(created: str) -> float:
    """Days since an ISO date.

    Raises:
        ProfileError: not an ISO date.
    """
    try:
        moment = datetime.fromisoformat(created)
    except ValueError as error:
        raise ProfileError(f"The date of a profile must be ISO 8601, got {created!r}.") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (datetime.now(UTC) - moment).total_seconds() / 86400


def _key(shape: Shape, pattern: AbstractPattern, value_dtype: str) -> Key:
    if isinstance(pattern, Dense) and value_dtype == "fp16":
        # Stored as fp16, computed as float32: the time is that of the dense layer.
        value_dtype = "fp32"
    return ((int(shape[0]), int(shape[1])), str(pattern), value_dtype)


def _at(rows: tuple[CostRow, ...], tokens: int, read: Any) -> float:
    """Piecewise linear in tokens; beyond the last measurement in proportion."""
    last = rows[-1]
    if tokens >= last.tokens:
        return float(read(last) * tokens / last.tokens)
    if tokens <= rows[0].tokens:
        return float(read(rows[0]))
    for left, right in zip(rows, rows[1:]):
        if left.tokens <= tokens <= right.tokens:
            share = (tokens - left.tokens) / (right.tokens - left.tokens)
            return float(read(left) + share * (read(right) - read(left)))
    raise ProfileError(f"The profile has no measurement around {tokens} tokens.")


def _ratio_at(rows: tuple[CostRow, ...], tokens: int) -> float:
    """Ratio to dense, linear in the logarithm of tokens; beyond the last measurement it stays."""
    for left, right in zip(rows, rows[1:]):
        if left.tokens <= tokens < right.tokens:
            share = math.log(tokens / left.tokens) / math.log(right.tokens / left.tokens)
            low, high = left.seconds / left.dense_seconds, right.seconds / right.dense_seconds
            return low + share * (high - low)
    return rows[-1].seconds / rows[-1].dense_seconds


def _row_to_data(row: CostRow) -> dict[str, Any]:
    return {
        "shape": list(row.shape),
        "pattern": row.pattern,
        "value_dtype": row.value_dtype,
        "tokens": row.tokens,
        "seconds": row.seconds,
        "dense_seconds": row.dense_seconds,
        "low": row.low,
        "high": row.high,
        "rounds": row.rounds,
    }


def _row_from_data(data: Any, number: int) -> CostRow:
    known = {"shape", "pattern", "value_dtype", "tokens", "seconds", "dense_seconds", "low", "high", "rounds"}
    where = f"row {number} of the profile"
    if not isinstance(data, Mapping) or set(data) != known:
        raise ProfileError(f"{where} must have exactly the keys {', '.join(sorted(known))}.")
    shape = data["shape"]
    if not isinstance(shape, list | tuple) or len(shape) != 2:
        raise ProfileError(f"The shape in {where} must be [out, in], got {shape!r}.")
    if data["value_dtype"] not in VALUE_BITS:
        raise ProfileError(f"The value type in {where} must be one of {', '.join(VALUE_BITS)}.")
    try:
        pattern = str(parse_pattern(data["pattern"]))
    except PatternError as error:
        raise ProfileError(f"The pattern in {where}: {error}") from error
    return CostRow(
        shape=(_integer(shape[0], where), _integer(shape[1], where)),
        pattern=pattern,
        value_dtype=data["value_dtype"],
        tokens=_integer(data["tokens"], where),
        seconds=_seconds(data["seconds"], where),
        dense_seconds=_seconds(data["dense_seconds"], where),
        low=_seconds(data["low"], where),
        high=_seconds(data["high"], where),
        rounds=_integer(data["rounds"], where),
    )


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST:
        raise ProfileError(f"{where} needs a whole number from 1 to {_LARGEST - 1}, got {value!r}.")
    return value


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ProfileError(f"{where} needs seconds between 0 and a million, got {value!r}.")
    return float(value)
