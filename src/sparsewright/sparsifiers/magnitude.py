"""Magnitude: keep the largest absolute weights. Needs no data; the baseline that every other method must beat.

Source: Han et al. 2015, arXiv:1506.02626. Shared choices sum the magnitudes over the rows that share.
"""

from typing import ClassVar, final

import torch
from torch import Tensor

from ..core import AbstractPattern, LayerStats
from ..solvers import solve_mask
from .base import AbstractSparsifier, Needs, Sparsified, sparsifiers


@final
@sparsifiers.register("magnitude")
class Magnitude(AbstractSparsifier):
    """Score = |w|; kept weights stay as they are."""

    needs: ClassVar[Needs] = "none"

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """Solve the mask for |w|."""
        mask = solve_mask(weight.abs(), pattern)
        return Sparsified(mask, torch.where(mask, weight, 0))
