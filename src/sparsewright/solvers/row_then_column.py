"""Transposable N:M masks in two steps: the best N of every row, and of those the best N of every column.

Source: the baseline "Bi-NM" of TSENOR, arXiv:2505.23949, after Zhang et al. 2023. For comparison: up to a fifth below
the best kept sum.
"""

from typing import cast, final

import torch
from torch import Tensor

from ..core import AbstractPattern, Transposable
from .base import AbstractMaskSolver, Count, solvers
from .ranking import top_n


@final
@solvers.register("row_then_column")
class RowThenColumn(AbstractMaskSolver):
    """Rows first, then columns; ties go to the lower index."""

    exact = False

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Transposable N:M."""
        single = isinstance(pattern, Transposable) and pattern.size == 1
        return [] if single else ["it solves transposable N:M of single weights such as 2:4t"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Rows and columns may stay short of N, whatever `count` says."""
        rule = cast(Transposable, pattern)
        of_rows = top_n(scores.unflatten(1, (-1, rule.m)), rule.n).flatten(1)
        left = torch.where(of_rows, scores, -torch.inf)
        mask = top_n(left.T.unflatten(1, (-1, rule.m)), rule.n).flatten(1).T & of_rows
        return mask if count == "exactly" else mask & (scores > 0)
