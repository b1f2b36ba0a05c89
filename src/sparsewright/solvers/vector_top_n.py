"""Exact vector-wise N:M masks: `G` consecutive rows share the `n` columns of every `m` with the best summed score.

Source: VENOM, arXiv:2310.02065. Exact for the summed score, because groups never overlap.
"""

from typing import cast, final

from torch import Tensor

from ..core import NM, AbstractPattern
from .base import AbstractMaskSolver, Count, solvers
from .ranking import top_n
from .sharing import spread, unit_scores


@final
@solvers.register("vector_top_n")
class VectorTopN(AbstractMaskSolver):
    """Keep the `n` columns with the highest score summed over the row group; ties go to the lower column."""

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """N:M that is shared over rows."""
        return [] if isinstance(pattern, NM) and pattern.group > 1 else ["it solves shared N:M such as 2:4x4"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """A last row group shorter than `G` sums over the rows it has."""
        rule = cast(NM, pattern)
        sums = unit_scores(scores, rule.group)
        units = top_n(sums.unflatten(1, (-1, rule.m)), rule.n).flatten(1)
        if count == "at_most":
            units &= sums > 0
        return spread(units, rule.group, 1, (scores.shape[0], scores.shape[1]))
