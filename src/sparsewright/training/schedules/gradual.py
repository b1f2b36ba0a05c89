"""Gradual: from dense to the pattern over many steps, fast at first and slower towards the end.

Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1: density
d(t) = d + (1 - d) (1 - (t - begin) / (end - begin))^3.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ...core import NMG, AbstractPattern, Dense, Transposable
from .base import AbstractSchedule, MaskChange, Timing, schedules
from .chain import on_the_way


@final
@schedules.register("gradual")
@dataclass(frozen=True)
class Gradual(AbstractSchedule):
    """Drop the smallest weights little by little, by the cubic schedule.

    Attributes:
        nested: what has been dropped stays dropped (n:m:g, whose choices are not nested: as far as they allow). False
            lets dropped places of transposable and n:m:g masks come back, at a weight of zero, where the pattern has
            better use for them.
    """

    nested: bool = True

    starts_dense: ClassVar[bool] = True
    needs_end: ClassVar[bool] = True

    def pattern(self, final: AbstractPattern, step: int, timing: Timing) -> AbstractPattern:
        """What was reached at the last change: patterns move with the masks, not between them."""
        if step < timing.begin or isinstance(final, Dense):
            return Dense()
        if timing.end is None or step < timing.end:
            step = timing.begin + (step - timing.begin) // timing.every * timing.every
        left = (1 - timing.share(step)) ** 3
        return on_the_way(final, final.density + (1 - final.density) * left)

    def choose(self, change: MaskChange) -> Tensor:
        """The largest weights among those that are left."""
        if isinstance(change.pattern, Dense):
            return torch.ones_like(change.mask)
        scores = change.weight.abs()
        if not self.nested:
            return change.solve(scores)
        if isinstance(change.pattern, Transposable):
            # A regular mask always holds one of fewer per row and column: it is a union of perfect matchings.
            return change.solve(scores, drop=~change.mask)
        # Below every weight, zeros too; n:m:g, which may have to take some of them, should not do it lightly.
        below = -(scores.max() + 1) if isinstance(change.pattern, NMG) else torch.full_like(scores[0, 0], -1)
        return change.solve(torch.where(change.mask, scores, below))
