"""SR-STE: straight-through masks whose dropped weights decay towards zero, so that masks settle.

Source: Zhou et al. 2021, arXiv:2102.04010, equation 9: the gradient of the masked weights goes to all of them, plus
`decay * w` for the dropped ones. With adaptive optimisers such as AdamW the term is divided by the gradient's size as
all others are, so equal numbers do not mean equal strength.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from ...core import RecipeError, is_number
from .base import AbstractSchedule, MaskChange, schedules


@final
@schedules.register("sr_ste")
@dataclass(frozen=True)
class SparseRefined(AbstractSchedule):
    """Solve masks anew every k steps (usually every one); dropped weights are trained unseen, and decay.

    Attributes:
        strength: lambda_W of the paper.
    """

    strength: float = 2e-4

    live: ClassVar[bool] = True
    usual_every: ClassVar[int] = 1
    until: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.strength) or not 0 <= self.strength < math.inf:
            raise RecipeError(f"SR-STE takes a strength of at least 0, got {self.strength}. The usual one is 2e-4.")

    @property
    def decay(self) -> float:
        """Lambda_W."""
        return self.strength

    def choose(self, change: MaskChange) -> Tensor:
        """The largest weights, dropped ones counted as well."""
        return change.solve(change.weight.abs())
