"""Greedy transposable N:M masks: at least half of the best kept sum, in practice 1 to 3 % below it.

Source: Hubara et al. 2021, arXiv:2102.08124, algorithm 1. For comparison; `transposable` is exact and faster.
"""

from typing import cast, final

from torch import Tensor

from ..core import AbstractPattern, Transposable
from .base import AbstractMaskSolver, Count, solvers
from .tiling import cut_tiles, join_tiles, take_by_order


@final
@solvers.register("two_approximation")
class TwoApproximation(AbstractMaskSolver):
    """Cells by falling score, each taken while its row and its column have room; ties go to the lower index."""

    exact = False

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Transposable N:M."""
        single = isinstance(pattern, Transposable) and pattern.size == 1
        return [] if single else ["it solves transposable N:M of single weights such as 2:4t"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Rows and columns may stay short of N, whatever `count` says."""
        rule = cast(Transposable, pattern)
        order = cut_tiles(scores, rule.m, rule.m).flatten(1).sort(dim=1, descending=True, stable=True).indices
        mask = join_tiles(take_by_order(order, rule.m, rule.n), *scores.shape)[0]
        return mask if count == "exactly" else mask & (scores > 0)
