"""RigL: drop the smallest weights, grow those with the largest gradient. Source: Evci et al. 2020, arXiv:1911.11134.

The fraction falls with a cosine to zero at the end: f(t) = fraction / 2 (1 + cos(pi (t - begin) / (end - begin))).
Grown weights begin at zero, with moments of zero. The paper changes masks in place of a step of the optimiser,
here they change right after one, by the gradient of that step.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from .base import AbstractSchedule, MaskChange, schedules
from .evolutionary import require_fraction
from .exchange import exchange


@final
@schedules.register("rigl")
@dataclass(frozen=True)
class RigL(AbstractSchedule):
    """Drop the smallest weights, grow those with the largest gradient; dropped weights are forgotten.

    Attributes:
        fraction: of the kept weights that are exchanged at the first change (alpha of the paper).
    """

    fraction: float = 0.3

    needs_gradient: ClassVar[bool] = True
    needs_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_fraction(self.fraction)

    def choose(self, change: MaskChange) -> Tensor:
        """Growth is the size of the dense gradient."""
        assert change.gradient is not None
        share = self.fraction / 2 * (1 + math.cos(math.pi * change.timing.share(change.step)))
        return exchange(change, change.gradient.abs(), share)
