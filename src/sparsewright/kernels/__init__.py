"""Floor 3: operations on packed weights. One folder per operation: reference, native kernels, dispatch."""

from .sparse_conv import conv2d, reference_conv2d, which_conv2d, why_not_conv2d
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
    "conv2d",
    "dispatch_table",
    "linear",
    "reference_conv2d",
    "reference_linear",
    "set_dispatch_table",
    "set_sharing",
    "which",
    "which_conv2d",
    "why_not",
    "why_not_conv2d",
]
