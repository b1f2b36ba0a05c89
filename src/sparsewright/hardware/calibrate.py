"""Calibrating dispatch: which kernel is faster where, and from which size on threads pay, measured on this machine.

The table is kept beside the measured costs, under the machine's fingerprint and versions. It changes no result: from
two tokens on the float kernels that it chooses between add up in one order, on however many threads.
"""

import contextlib
import functools
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from ..core import DispatchEntry, DispatchTable, FileError, ProfileError, read_json, write_json
from ..kernels import Sharing, linear, set_dispatch_table, set_sharing
from ..layouts import PackedWeight, pack
from .fingerprint import this_machine
from .store import cache_folder
from .timing import interleave

_OP = "sparse_linear"
_KERNELS = ("token_lane", "row_lane")
_GROUPS = (4, 8, 16)
_OUT = 192
# Cells of the table: a size, and where its region ends (half way to the next).
_TOKENS = ((2, 3), (4, 6), (8, 12), (16, 24), (32, 48), (64, 96), (128, 256), (512, math.inf))
_IN = ((768, 1536), (3072, math.inf))
_DENSITIES = ((0.1, 0.2), (0.5, math.inf))
# At larger batches rows must win by so much before they are preferred: the other kernel reads weights less often.
_CLEARLY = 1.03
_LEAST_MINUTES = 0.25
# On a busy machine threads seem never to pay; what was measured then must not bind quieter days.
_LATEST_S = 400e-6


@final
@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        table: kernels to prefer, for every cell that was timed.
        sharing: when to use threads; None where only one thread was allowed.
        fingerprint, versions: of the machine.
    """

    table: DispatchTable
    sharing: Sharing | None
    fingerprint: str
    versions: str

    def apply(self) -> None:
        """Let kernels choose by it, in this process."""
        set_dispatch_table(self.table)
        set_sharing(self.sharing)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": "sparsewright calibration",
            "fingerprint": self.fingerprint,
            "versions": self.versions,
            "table": self.table.to_data(),
            "sharing": None if self.sharing is None else asdict(self.sharing),
        }

    @staticmethod
    def from_data(data: Any) -> "Calibration":
        """Read what `to_data` wrote.

        Raises:
            ProfileError: the data are of another form.
        """
        try:
            if data["kind"] != "sparsewright calibration":
                raise ValueError(data["kind"])
            found = data["sharing"]
            sharing = None if found is None else Sharing(**{key: float(value) for key, value in found.items()})
            if sharing is not None and not all(0 < value < math.inf for value in asdict(sharing).values()):
                raise ValueError(found)
            table = DispatchTable.from_data(data["table"])
            return Calibration(table, sharing, str(data["fingerprint"]), str(data["versions"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ProfileError(
                f"The calibration is malformed ({error!r}). Run `sparsewright profile` again."
            ) from error


def calibrate(seconds: float = 3.0, threads: int | None = None) -> Calibration:
    """Time the kernels against each other, keep the result for later processes, and apply it here.

    Args:
        seconds: about how long it may take.
        threads: how many to share between when break-even is measured; default torch's own number.

    Raises:
        FileError: the result cannot be written; it is applied all the same.
    """
    machine = this_machine()
    count = torch.get_num_threads() if threads is None else threads
    cells = len(_GROUPS) * len(_IN) * len(_DENSITIES) * len(_TOKENS)
    entries: list[DispatchEntry] = []
    try:
        for group in _GROUPS:
            for in_, in_end in _IN:
                for density, density_end in _DENSITIES:
                    entries += _cell(group, in_, in_end, density, density_end, 0.8 * seconds / cells)
        sharing = _sharing(count, 0.2 * seconds) if count > 1 else None
    finally:
        set_dispatch_table(None)
        set_sharing(None)
    found = Calibration(DispatchTable(tuple(entries)), sharing, machine.fingerprint, machine.versions)
    # In use even where it cannot be kept.
    found.apply()
    write_json(_path(machine.fingerprint), found.to_data())
    return found


def apply_calibration() -> Calibration | None:
    """Apply what an earlier process measured on this machine with these versions; None if there is nothing.

    A damaged file is as good as none: the built-in table is right everywhere, only slower in places.
    """
    machine = this_machine()
    try:
        found = Calibration.from_data(read_json(_path(machine.fingerprint)))
    except (FileError, ProfileError):
        return None
    if (found.fingerprint, found.versions) != (machine.fingerprint, machine.versions):
        return None
    found.apply()
    return found


@functools.cache
def apply_calibration_once() -> None:
    """`apply_calibration`, at most once in a process: what packing and loading call."""
    apply_calibration()


def ensure_calibrated(minutes: float | None, again: bool = False) -> None:
    """Apply what is known of this machine; measure it first where nothing is and there is time for it.

    Args:
        minutes: what the caller may spend in all; None is plenty. Under a quarter of a minute nothing is measured.
        again: measure even where something is known.
    """
    if (again or apply_calibration() is None) and (minutes is None or minutes >= _LEAST_MINUTES):
        # Without a place to keep it, later processes measure again; this one has it.
        with contextlib.suppress(FileError):
            calibrate()


def _path(fingerprint: str) -> Path:
    return cache_folder() / f"dispatch-{fingerprint[:16]}.json"


def _cell(
    group: int, in_: int, in_end: float, density: float, density_end: float, seconds: float
) -> list[DispatchEntry]:
    """Entries of one weight: neighbouring token counts with one winner share an entry."""
    packed = _weight(group, in_, density)
    won: list[tuple[tuple[float, float], tuple[str, ...]]] = []
    low = 2.0
    for tokens, end in _TOKENS:
        order = _order(packed, tokens, seconds)
        if won and won[-1][1] == order:
            won[-1] = ((won[-1][0][0], end), order)
        else:
            won.append(((low, end), order))
        low = end
    in_low = 0 if in_ == _IN[0][0] else _IN[0][1]
    density_low = 0 if density == _DENSITIES[0][0] else _DENSITIES[0][1]
    return [
        DispatchEntry(_OP, order, group, tokens, (in_low, in_end), (density_low, density_end)) for tokens, order in won
    ]


def _order(packed: PackedWeight, tokens: int, seconds: float) -> tuple[str, ...]:
    x = torch.randn(tokens, packed.shape[1], generator=torch.Generator().manual_seed(0))
    # The table decides on every call, so each kernel is forced by a table of its own just before it is timed.
    tables = {name: DispatchTable((DispatchEntry(_OP, (name,)),)) for name in _KERNELS}

    def forced(name: str) -> None:
        set_dispatch_table(tables[name])
        for _ in range(max(1, 64 // tokens)):
            linear(x, packed)

    samples = interleave(
        {name: functools.partial(forced, name) for name in _KERNELS}, threads=1, rounds=(5, 9), seconds=seconds
    )
    first, second = _KERNELS
    ahead = samples[first].median <= samples[second].median * (_CLEARLY if tokens >= 8 else 1.0)
    return (first, second) if ahead else (second, first)


def _weight(group: int, in_: int, density: float) -> PackedWeight:
    kept = max(1, round(density * in_))
    order = torch.rand(_OUT // group, in_, generator=torch.Generator().manual_seed(group)).argsort(1)
    mask = (order < kept).repeat_interleave(group, dim=0)
    return pack(torch.ones(_OUT, in_), mask, "vector", f"{group}x1@{100 * density:g}%")


def _sharing(threads: int, seconds: float) -> Sharing:
    """Rates of one thread, and the smallest of growing calls that is faster when shared."""
    packed = _weight(4, 768, 0.5)
    kept = 0.5 * packed.shape[0] * packed.shape[1]
    never, always = Sharing(serial_s=math.inf), Sharing(serial_s=1e-12)
    sizes = (2, 4, 8, 16, 32, 64, 128)
    pays = 150e-6
    alone: dict[int, float] = {}
    for tokens in reversed(sizes):
        x = torch.randn(tokens, packed.shape[1], generator=torch.Generator().manual_seed(0))

        def run(how: Sharing, x: torch.Tensor = x) -> None:
            set_sharing(how)
            linear(x, packed)

        calls = {"alone": functools.partial(run, never), "shared": functools.partial(run, always)}
        samples = interleave(calls, threads=threads, rounds=(9, 40), seconds=seconds / len(sizes))
        one, many = float(samples["alone"].cpu.min()), float(samples["shared"].wall.min())
        alone[tokens] = one
        if many >= 0.95 * one:
            pays = one if tokens == sizes[-1] else alone[tokens * 2]
            break
        pays = one
    rate = kept * sizes[-1] / alone[sizes[-1]]
    return Sharing(serial_s=min(pays, _LATEST_S), multiply_adds_per_s=rate, read_bytes_per_s=_read_rate())


def _read_rate() -> float:
    """Bytes that one thread reads in a second: a product with one token over more weights than nearer caches hold."""
    packed = _weight_of(4096, 4096)
    x = torch.randn(1, 4096)
    samples = interleave({"read": lambda: linear(x, packed)}, threads=1, rounds=(3, 9), seconds=0.2)
    return packed.size_bytes / samples["read"].median


def _weight_of(out: int, in_: int) -> PackedWeight:
    mask = torch.zeros(out // 16, in_, dtype=torch.bool)
    mask[:, ::4] = True
    return pack(torch.ones(out, in_), mask.repeat_interleave(16, dim=0), "vector", "1:4x16")
