"""Floor 4: packed weights inside unmodified modules, and sparse weights, activations and gradients by name."""

from ..kernels import AbstractLinear, on_missing, operators, register_operator
from . import arithmetic, convolution, handlers
from .implements import implements
from .mark import Marks, mark_
from .packed_linear import PackedLinear
from .refusals import packed_parameters
from .report import DispatchRow, dense_layers, dispatch_report, kept_places, masks
from .sparse_format import SparseFormat
from .sparse_tensor import SparseTensor, allow_loading, as_parameter, restore
from .tensor_sparsifiers import (
    AbstractTensorSparsifier,
    BlockFraction,
    GlobalFraction,
    KeepAll,
    Kind,
    NOfM,
    PatternFraction,
    RandomFraction,
    Threshold,
)
from .trainable import train_packed_, why_not_trainable

__all__ = [
    "AbstractLinear",
    "AbstractTensorSparsifier",
    "BlockFraction",
    "DispatchRow",
    "GlobalFraction",
    "KeepAll",
    "Kind",
    "Marks",
    "NOfM",
    "PackedLinear",
    "PatternFraction",
    "RandomFraction",
    "SparseFormat",
    "SparseTensor",
    "Threshold",
    "allow_loading",
    "arithmetic",
    "as_parameter",
    "convolution",
    "dense_layers",
    "dispatch_report",
    "handlers",
    "implements",
    "kept_places",
    "mark_",
    "masks",
    "packed_parameters",
    "on_missing",
    "operators",
    "register_operator",
    "restore",
    "train_packed_",
    "why_not_trainable",
]
