"""One shot: dense until `begin`, then the largest weights, once. Source: Han et al. 2015, arXiv:1506.02626."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from .base import AbstractSchedule, MaskChange, Timing, schedules


@final
@schedules.register("one_shot")
@dataclass(frozen=True)
class OneShot(AbstractSchedule):
    """Choose masks once, at `begin`, by magnitude."""

    def due(self, step: int, timing: Timing) -> bool:
        """At `begin`; before the first step, masks are solved without being asked."""
        return step == timing.begin > 0

    def choose(self, change: MaskChange) -> Tensor:
        """The largest weights."""
        return change.solve(change.weight.abs())
