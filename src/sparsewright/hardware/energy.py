"""Energy of a block of work, from the processor's own counters (RAPL through /sys/class/powercap), where readable.

The counters cover the whole package, so neighbours on the machine are in the figure; it is reported as such, and where
no counter can be read nothing is estimated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

_ROOT = Path("/sys/class/powercap")


@final
@dataclass(frozen=True)
class PackageCounters:
    """The package-level energy counters of this machine.

    Attributes:
        zones: folders that hold `energy_uj` and `max_energy_range_uj`.
    """

    zones: tuple[Path, ...]

    def read_uj(self) -> tuple[int, ...]:
        """Microjoules since an unknown start, per zone."""
        return tuple(int((zone / "energy_uj").read_text()) for zone in self.zones)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Joules between two readings; a counter that wrapped once is put right."""
        spent = 0
        for zone, first, last in zip(self.zones, before, after):
            wrapped = int((zone / "max_energy_range_uj").read_text()) if last < first else 0
            spent += last - first + wrapped
        return spent / 1e6


def package_counters(root: Path = _ROOT) -> PackageCounters | None:
    """The readable package counters, or None: no such hardware, a virtual machine, or no permission."""
    zones = []
    for zone in sorted(root.glob("*-rapl:[0-9]*")):
        # `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it that is counted already.
        if zone.name.count(":") != 1:
            continue
        try:
            int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            continue
        zones.append(zone)
    return PackageCounters(tuple(zones)) if zones else None


def joules_per_call(call: Callable[[], object], calls: int, counters: PackageCounters | None = None) -> float | None:
    """Joules of one call, mean over `calls` in a row; None where no counter can be read."""
    found = counters or package_counters()
    if found is None:
        return None
    before = found.read_uj()
    for _ in range(calls):
        call()
    return found.joules(before, found.read_uj()) / max(1, calls)
