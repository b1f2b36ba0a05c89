"""Floor 4: packed weights inside unmodified modules."""

from . import convolution, handlers
from .report import DispatchRow, dense_layers, dispatch_report, masks
from .sparse_tensor import SparseTensor, allow_loading, as_parameter, restore

__all__ = [
    "DispatchRow",
    "SparseTensor",
    "allow_loading",
    "as_parameter",
    "convolution",
    "dense_layers",
    "dispatch_report",
    "handlers",
    "masks",
    "restore",
]
