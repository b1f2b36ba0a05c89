"""Floor 4: packed weights inside unmodified modules."""

from . import arithmetic, convolution, handlers
from .refusals import packed_parameters
from .report import DispatchRow, dense_layers, dispatch_report, masks
from .sparse_tensor import SparseTensor, allow_loading, as_parameter, restore
from .trainable import train_packed_, why_not_trainable

__all__ = [
    "DispatchRow",
    "SparseTensor",
    "allow_loading",
    "arithmetic",
    "as_parameter",
    "convolution",
    "dense_layers",
    "dispatch_report",
    "handlers",
    "masks",
    "packed_parameters",
    "restore",
    "train_packed_",
    "why_not_trainable",
]
