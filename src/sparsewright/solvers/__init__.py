"""Floor 2: scores and a pattern in, a mask out. One file per solver; importing this package registers them all."""

from . import blocks, group_top_n, grouped_nm, unstructured, vector_top_n
from .base import AbstractMaskSolver, Count, solve_mask, solvers
from .ranking import top_counts, top_n
from .sharing import spread, unit_scores
from .unstructured import solve_global

__all__ = [
    "AbstractMaskSolver",
    "Count",
    "blocks",
    "group_top_n",
    "grouped_nm",
    "solve_global",
    "solve_mask",
    "solvers",
    "spread",
    "top_counts",
    "top_n",
    "unit_scores",
    "unstructured",
    "vector_top_n",
]
