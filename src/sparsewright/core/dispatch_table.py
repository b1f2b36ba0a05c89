"""Which kernel to prefer where: measured by `hardware`, handed down to `kernels`; a default ships.

An entry bounds a region of (op, group, tokens, in, density); the first entry that holds wins.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, final

from .errors import ProfileError


@final
@dataclass(frozen=True)
class DispatchEntry:
    """One region and the kernels to try in it, best first.

    Attributes:
        op: operation name, for instance `sparse_linear`.
        kernels: kernel names, best first.
        group: rows sharing a pattern, or None for any.
        tokens: half-open range `[low, high)`.
        in_: half-open range of the input dimension.
        density: half-open range.
    """

    op: str
    kernels: tuple[str, ...]
    group: int | None = None
    tokens: tuple[float, float] = (0, math.inf)
    in_: tuple[float, float] = (0, math.inf)
    density: tuple[float, float] = (0.0, math.inf)

    def holds(self, op: str, group: int, tokens: int, in_: int, density: float) -> bool:
        """Whether the entry speaks about this call."""
        return (
            op == self.op
            and self.group in (None, group)
            and self.tokens[0] <= tokens < self.tokens[1]
            and self.in_[0] <= in_ < self.in_[1]
            and self.density[0] <= density < self.density[1]
        )


@final
@dataclass(frozen=True)
class DispatchTable:
    """Ordered entries; later tables are put in front of earlier ones by `over`."""

    entries: tuple[DispatchEntry, ...] = field(default=())

    def prefer(self, op: str, group: int, tokens: int, in_: int, density: float) -> tuple[str, ...]:
        """Kernel names to try, best first; empty where the table says nothing."""
        for entry in self.entries:
            if entry.holds(op, group, tokens, in_, density):
                return entry.kernels
        return ()

    def over(self, other: "DispatchTable") -> "DispatchTable":
        """This table first, then `other`."""
        return DispatchTable(self.entries + other.entries)

    def to_data(self) -> list[dict[str, Any]]:
        """Plain data for JSON; infinities are written as None."""
        return [_open_ends(asdict(entry), math.inf, None) for entry in self.entries]

    @staticmethod
    def from_data(data: Any) -> "DispatchTable":
        """Read what `to_data` wrote.

        Raises:
            ProfileError: the data are of another form.
        """
        try:
            entries = []
            for row in data:
                row = _open_ends(dict(row), None, math.inf)
                ranges = {key: (float(row[key][0]), float(row[key][1])) for key in ("tokens", "in_", "density")}
                group = None if row["group"] is None or row["group"] == math.inf else int(row["group"])
                kernels = tuple(str(name) for name in row["kernels"])
                entries.append(DispatchEntry(op=str(row["op"]), kernels=kernels, group=group, **ranges))
            return DispatchTable(tuple(entries))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ProfileError(f"The dispatch table is malformed ({error!r}). Measure the profile again.") from error


def _open_ends(row: dict[str, Any], old: Any, new: Any) -> dict[str, Any]:
    for key in ("tokens", "in_", "density"):
        row[key] = [new if end == old else end for end in row[key]]
    return row
