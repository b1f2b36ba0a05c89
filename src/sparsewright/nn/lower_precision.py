"""Modules that were moved to float16 or bfloat16: the kernels multiply in float32, and the result is rounded once.

So a model after `.half()` or `.bfloat16()` runs as it does in torch, at least as exactly, with 16-bit activations
between its layers. bfloat16 values have no kernel of their own: they are widened once, at the first call, and again
when they were written to.
"""

import weakref
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core import KernelError
from ..kernels import linear as multiply_float32
from ..layouts import PackedWeight
from .sparse_tensor import SparseTensor, copy_packed

_LOWER = (torch.float16, torch.bfloat16)
# With torch's own counters of how often each tensor had been written to.
_widened: "weakref.WeakKeyDictionary[PackedWeight, tuple[tuple[int, ...], PackedWeight]]" = weakref.WeakKeyDictionary()


def multiply(x: Tensor, weight: SparseTensor, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias`, whichever way round the weight is seen.

    Args:
        x: `(..., in)` in the dtype that the weight is seen as: float32, float16 or bfloat16.
        weight: frozen.
        bias: `(out,)` in the dtype of x, or None.

    Returns:
        `(..., out)` in the dtype of x; under autocast see `sparsewright.linear`.
    """
    return run_widened(multiply_float32, x, weight, bias)


def run_widened(run: Callable[..., Tensor], x: Tensor, weight: SparseTensor, bias: Tensor | None) -> Tensor:
    """`run(x, packed weight, bias)`, in float32 and rounded once where x and the weight are of one 16-bit dtype."""
    packed, seen_as = weight.packed, weight.seen_as
    if torch.is_autocast_enabled("cpu"):
        # `run` casts x and bias itself.
        return run(x, _runnable(packed) if seen_as in _LOWER and packed.device.type == "cpu" else packed, bias)
    if seen_as is torch.float32:
        return run(x, packed, bias)
    if x.dtype is not seen_as and packed.device.type == "cpu":
        raise KernelError(
            f"This layer was moved to {seen_as} and takes inputs of that dtype, got x of {x.dtype}. Cast x, or move "
            "the layer back with `.float()`."
        )
    if x.dtype not in _LOWER or x.dtype is not seen_as:
        return run(x, packed, bias)
    if bias is not None and bias.dtype == x.dtype:
        bias = bias.float()
    return run(x.float(), _runnable(packed), bias).to(x.dtype)


def forget_widened(packed: PackedWeight) -> None:
    """Widen the values anew at the next call: torch does not count what handlers of its operators write."""
    _widened.pop(packed, None)


def _runnable(packed: PackedWeight) -> PackedWeight:
    if packed.value_dtype != torch.bfloat16:
        return packed
    if torch.compiler.is_compiling():
        return _widen(packed)
    versions = tuple(0 if plane.is_inference() else plane._version for plane in packed.tensors.values())
    found = _widened.get(packed)
    if found is None or found[0] != versions:
        found = _widened[packed] = (versions, _widen(packed))
    return found[1]


def _widen(packed: PackedWeight) -> PackedWeight:
    wide = copy_packed(packed, lambda inner: inner.float() if inner.is_floating_point() else inner)
    return replace(wide, value_dtype=torch.float32)
