"""Floor 3: operations on packed weights. One folder per operation: reference, native kernels, dispatch."""

from .sparse_linear import (
    Sharing,
    dispatch_table,
    linear,
    reference_linear,
    set_dispatch_table,
    set_sharing,
    which,
    why_not,
)

__all__ = [
    "Sharing",
    "dispatch_table",
    "linear",
    "reference_linear",
    "set_dispatch_table",
    "set_sharing",
    "which",
    "why_not",
]
