"""Wanda: keep the weights with the largest |w| times the norm of their input.

Source: Sun et al. 2023, arXiv:2306.11695. Shared choices sum the scores over the rows that share (vector-wise).
"""

from typing import ClassVar, cast, final

import torch
from torch import Tensor

from ..core import AbstractPattern, LayerStats, Unstructured
from ..solvers import solve_mask, top_n
from .base import AbstractSparsifier, Needs, Sparsified, sparsifiers


@final
@sparsifiers.register("wanda")
class Wanda(AbstractSparsifier):
    """Score = |w| * root mean square of the input; kept weights stay as they are."""

    needs: ClassVar[Needs] = "norm"

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """Solve the mask for the scores; unstructured compares within each output row, as the paper does."""
        norm = cast(LayerStats, stats).norm.to(weight.device)
        # In double precision, so that half-precision weights times small norms do not all become zero.
        scores = weight.double().abs() * norm
        mask = _balanced(scores, pattern) if isinstance(pattern, Unstructured) else solve_mask(scores, pattern)
        return Sparsified(mask, torch.where(mask, weight, 0))


def _balanced(scores: Tensor, pattern: Unstructured) -> Tensor:
    """The same count in every row; where the total leaves a rest, one more for the rows with the best next score."""
    out, in_ = scores.shape
    each, rest = divmod(pattern.kept_weights((out, in_)), out)
    mask = top_n(scores, each)
    if rest == 0:
        return mask
    # Exactly one more per row, because top_n is nested in n.
    following = top_n(scores, each + 1) & ~mask
    lucky = top_n(torch.where(following, scores, 0).sum(1), rest)
    return mask | (following & lucky[:, None])
