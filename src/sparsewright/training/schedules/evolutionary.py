"""SET: drop the smallest weights, grow as many at random. Source: Mocanu et al. 2018, arXiv:1707.04780.

Grown weights begin at zero, with moments of zero.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ...core import RecipeError, is_number
from .base import AbstractSchedule, MaskChange, schedules
from .exchange import exchange


@final
@schedules.register("set")
@dataclass(frozen=True)
class SparseEvolutionary(AbstractSchedule):
    """Drop the smallest weights, grow others at random; dropped weights are forgotten.

    Attributes:
        fraction: of the kept weights that are exchanged at each change (zeta of the paper).
    """

    fraction: float = 0.3

    def __post_init__(self) -> None:
        require_fraction(self.fraction)

    def choose(self, change: MaskChange) -> Tensor:
        """Growth is the same for the same seed, step and layer."""
        growth = torch.from_numpy(change.random.random(tuple(change.mask.shape)))
        return exchange(change, growth.to(change.mask.device), self.fraction)


def require_fraction(fraction: float) -> None:
    """Raise RecipeError unless it is a number from 0 to 1."""
    if not is_number(fraction) or not 0 <= fraction <= 1:
        raise RecipeError(f"The fraction of kept weights to exchange lies between 0 and 1, got {fraction!r}.")
