"""Exact N:M masks: the `n` best scores of every group of `m`.

Source: Zhou et al. 2021, arXiv:2102.04010. Exact, because groups never overlap.
"""

from typing import cast, final

from torch import Tensor

from ..core import NM, AbstractPattern
from .base import AbstractMaskSolver, Count, solvers
from .ranking import top_n


@final
@solvers.register("group_top_n")
class GroupTopN(AbstractMaskSolver):
    """Keep the `n` highest scores of each group; ties go to the lower index."""

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Plain N:M only."""
        return [] if isinstance(pattern, NM) and pattern.group == 1 else ["it solves plain N:M such as 2:4"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Groups of `m` run along `in`; exactly `n` per group, or its positive ones at most."""
        rule = cast(NM, pattern)
        mask = top_n(scores.unflatten(1, (-1, rule.m)), rule.n).flatten(1)
        return mask if count == "exactly" else mask & (scores > 0)
