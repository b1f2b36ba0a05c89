"""Layers to time: real packed weights of a pattern with random values, run as a model would run them.

Several copies take turns, because a model with many layers never finds the same weight in cache twice in a row.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .. import layouts
from ..core import AbstractPattern, Dense, ValueType
from ..layouts import PackedWeight
from ..nn import SparseTensor
from ..solvers import solve_mask

Shape = tuple[int, int]
Operand = Callable[[Tensor], Tensor]

# Together the copies should not fit beside everything else in a usual last-level cache slice.
_ROTATED_BYTES = 12 << 20
_COPIES = (2, 6)

TORCH_DTYPES: dict[ValueType, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}


def random_weight(shape: Shape, seed: int = 0) -> Tensor:
    """`(out, in)` float32 normal values of a usual scale."""
    weight: Tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[1] ** 0.5
    return weight


def dense_operand(shape: Shape) -> Operand:
    """torch's dense linear, float32, with bias."""
    copies = [random_weight(shape, seed) for seed in range(_copies(4 * shape[0] * shape[1]))]
    bias = torch.zeros(shape[0])
    turn = itertools.cycle(copies)
    return lambda x: functional.linear(x, next(turn), bias)


def packed_operand(shape: Shape, pattern: AbstractPattern, value_dtype: ValueType, layout: str = "auto") -> Operand:
    """The packed form of a random mask of the pattern, with bias.

    Raises:
        PatternError: the pattern does not fit the shape.
        LayoutError: no layout packs it, or not with this value type.
        KernelError: no kernel runs it here (raised by the first call).
    """
    pattern.require_fit(shape, "the layer to time")
    weight = random_weight(shape)
    dense = isinstance(pattern, Dense)
    mask = torch.ones(shape, dtype=torch.bool) if dense else solve_mask(weight.abs(), pattern)
    # As `pack_` does where the layer's end cuts tiles off.
    rule = layouts.infer_pattern(mask) if pattern.cuts(shape) else pattern
    packed = layouts.pack(weight, mask, layout, rule, TORCH_DTYPES[value_dtype])
    bias = torch.zeros(shape[0])
    copies = [packed, *(_clone(packed) for _ in range(_copies(packed.size_bytes) - 1))]
    # Through the tensor subclass, because that is what the layers of a packed model call.
    turn = itertools.cycle([SparseTensor(copy) for copy in copies])
    return lambda x: functional.linear(x, next(turn), bias)


def operand(shape: Shape, pattern: AbstractPattern, value_dtype: ValueType) -> Operand:
    """What runs a layer of this shape under this choice.

    A dense layer with fp16 values is stored so and computed in float32: its time is that of the dense layer.
    """
    if isinstance(pattern, Dense) and value_dtype != "int8":
        return dense_operand(shape)
    return packed_operand(shape, pattern, value_dtype)


def _copies(size_bytes: int) -> int:
    least, most = _COPIES
    return min(most, max(least, _ROTATED_BYTES // max(1, size_bytes)))


def _clone(packed: PackedWeight) -> PackedWeight:
    return PackedWeight(
        layout=packed.layout,
        pattern=packed.pattern,
        shape=packed.shape,
        value_dtype=packed.value_dtype,
        tensors={name: tensor.clone() for name, tensor in packed.tensors.items()},
    )
