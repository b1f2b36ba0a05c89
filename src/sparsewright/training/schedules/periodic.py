"""Periodic: dropped weights live on, and masks are solved anew every k steps from all weights as they are by then.

Source: straight-through masks solved now and then, Hu et al. 2024, arXiv:2404.01847. Prices barely move from one
solution to the next, so transposable masks start from the earlier ones.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from .base import AbstractSchedule, MaskChange, schedules


@final
@schedules.register("periodic")
@dataclass(frozen=True)
class Periodic(AbstractSchedule):
    """Solve masks anew every k steps; dropped weights are trained unseen in between."""

    live: ClassVar[bool] = True

    def choose(self, change: MaskChange) -> Tensor:
        """The largest weights, dropped ones counted as well."""
        return change.solve(change.weight.abs())
