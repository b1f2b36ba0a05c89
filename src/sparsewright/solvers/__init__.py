"""Floor 2: scores and a pattern in, a mask out. One file per solver; importing this package registers them all."""

from . import blocks, group_top_n, unstructured, vector_top_n
from .base import AbstractMaskSolver, Count, solve_mask, solvers
from .unstructured import solve_global

__all__ = [
    "AbstractMaskSolver",
    "Count",
    "blocks",
    "group_top_n",
    "solve_global",
    "solve_mask",
    "solvers",
    "unstructured",
    "vector_top_n",
]
