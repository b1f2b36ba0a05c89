"""`y = x W^T + b` with a packed weight W."""

from .dispatch import dispatch_table, set_dispatch_table, which, why_not
from .linear import linear
from .missing import OnMissing, count_dense_run, dense_runs, forget_dense_runs, missing_choice, on_missing
from .operators import AbstractLinear, operators, register_operator
from .reference import reference_linear

__all__ = [
    "AbstractLinear",
    "OnMissing",
    "count_dense_run",
    "dense_runs",
    "dispatch_table",
    "forget_dense_runs",
    "linear",
    "missing_choice",
    "on_missing",
    "operators",
    "reference_linear",
    "register_operator",
    "set_dispatch_table",
    "which",
    "why_not",
]
