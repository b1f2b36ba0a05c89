"""Floor 2: scores and a pattern in, a mask out. One file per solver; importing this package registers them all."""

from .base import AbstractMaskSolver, Count, solve_mask, solvers

__all__ = ["AbstractMaskSolver", "Count", "solve_mask", "solvers"]
