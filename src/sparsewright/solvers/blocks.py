"""Exact block masks: every row group keeps its best blocks of columns, anywhere along `in`."""

from typing import ClassVar, cast, final

from torch import Tensor

from ..core import AbstractPattern, Block, Edge
from .base import AbstractMaskSolver, Count, solvers
from .ranking import top_n
from .sharing import spread, unit_scores


@final
@solvers.register("blocks")
class BlockTopN(AbstractMaskSolver):
    """Keep the `round(density * in / columns)` blocks of each row group with the highest summed score.

    Ties go to the lower column. Blocks that the edge cuts off compete with what they have.
    """

    own_edges: ClassVar[frozenset[Edge]] = frozenset({"at_most"})

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Blocks only."""
        return [] if isinstance(pattern, Block) else ["it solves blocks such as 4x1@50%"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """A last row group shorter than `rows` sums over the rows it has."""
        rule = cast(Block, pattern)
        sums = unit_scores(scores, rule.rows, rule.columns)
        units = top_n(sums, rule.kept_blocks(scores.shape[1]))
        if count == "at_most":
            units &= sums > 0
        return spread(units, rule.rows, rule.columns, (scores.shape[0], scores.shape[1]))
