"""Budgets: what a plan may cost and lose."""

import math
from dataclasses import dataclass
from typing import final

from ..core import BudgetError


@final
@dataclass(frozen=True)
class Budget:
    """Bounds that all hold together; None leaves one open.

    Attributes:
        speedup: at least this many times faster than dense, end to end, at every batch that is timed.
        max_quality_drop: at most so much lost, absolute, in the unit of `evaluate`.
        size_bytes: at most so many bytes for the whole model.
        worst_slice_drop: at most so much lost on the worst slice of the data, same unit; checked by whoever evaluates.
    """

    speedup: float | None = None
    max_quality_drop: float | None = None
    size_bytes: int | None = None
    worst_slice_drop: float | None = None

    def __post_init__(self) -> None:
        for name in ("speedup", "max_quality_drop", "size_bytes", "worst_slice_drop"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise BudgetError(f"The budget's {name} must be a number of at least 0, got {value!r}. Leave it out?")
        if self.speedup is not None and self.speedup < 1:
            raise BudgetError(
                f"A speed-up of {self.speedup:g} asks for a slower model; it is dense time / sparse time. "
                f"Write {1 / self.speedup:g} if you meant the inverse."
                if self.speedup
                else "A speed-up of 0 has no meaning; it is dense time / sparse time. Leave it out."
            )

    @property
    def is_open(self) -> bool:
        """Whether nothing is bounded."""
        return (self.speedup, self.max_quality_drop, self.size_bytes, self.worst_slice_drop) == (None,) * 4
