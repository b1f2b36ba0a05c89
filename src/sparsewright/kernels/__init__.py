"""Floor 3: operations on packed weights. One folder per operation: reference, native kernels, dispatch."""

from .sparse_linear import dispatch_table, linear, reference_linear, set_dispatch_table, which, why_not

__all__ = ["dispatch_table", "linear", "reference_linear", "set_dispatch_table", "which", "why_not"]
