"""Floor 3: operations on packed weights. One folder per operation: reference, native kernels, dispatch."""

from .sparse_linear import (
    AbstractLinear,
    OnMissing,
    count_dense_run,
    dense_runs,
    dispatch_table,
    forget_dense_runs,
    linear,
    missing_choice,
    on_missing,
    operators,
    reference_linear,
    register_operator,
    set_dispatch_table,
    which,
    why_not,
)

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
