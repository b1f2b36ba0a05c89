"""Floor 2: scores and a pattern in, a mask out. One file per solver; importing this package registers them all."""

from ..core import Edge
from . import (
    blocks,
    group_top_n,
    grouped_nm,
    row_then_column,
    transposable,
    tsenor,
    two_approximation,
    unstructured,
    vector_top_n,
)
from .base import AbstractMaskSolver, Count, MaskSolution, solve_mask, solvers
from .channel_permutation import ChannelPermutation, permute_channels
from .ranking import top_counts, top_n
from .sharing import spread, unit_scores
from .transposable import solve_tiles
from .unstructured import solve_global

__all__ = [
    "AbstractMaskSolver",
    "ChannelPermutation",
    "Count",
    "Edge",
    "MaskSolution",
    "blocks",
    "group_top_n",
    "grouped_nm",
    "permute_channels",
    "row_then_column",
    "solve_global",
    "solve_mask",
    "solve_tiles",
    "solvers",
    "spread",
    "top_counts",
    "top_n",
    "transposable",
    "tsenor",
    "two_approximation",
    "unit_scores",
    "unstructured",
    "vector_top_n",
]
