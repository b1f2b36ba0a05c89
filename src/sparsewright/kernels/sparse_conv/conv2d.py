"""`conv2d`: the public door. Straight to the kernel in eager inference, the registered operator everywhere else."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.nn import functional

from ...layouts import PackedWeight
from ..flops import tell_flop_counters
from ..sparse_linear.autocast import as_float32
from ..sparse_linear.linear import _needs_operator
from ..sparse_linear.operand import NativeOperand, native_operand
from ..sparse_linear.transforms import check_eager, refuse_nested
from .dispatch import against_weight, no_kernel, why_not_conv2d
from .geometry import Geometry, Padding, check_call, geometry
from .op import run_native


def conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d` without touching what the weight does not keep.

    Results have the same bits from run to run, for any number of threads and any place in the batch (where an image
    has one output pixel they are those of `linear`, whose batch of one may differ in the last bits, and so may the two
    memory formats). Gradients reach x and bias; the packed weight is frozen.

    Args:
        x: `(batch, channels, height, width)` or `(channels, height, width)` float32, any strides; contiguous inputs and
            channels-last ones are read as they lie, and the output has the same memory format.
        packed: weight `(out, channels / groups * kh * kw)`: layout `vector` (float32 or float16 values), or `masked`
            (dense on request).
        bias: `(out,)` float32, or None.
        kernel_size: height and width of the kernel, or one number for both.
        stride, dilation: likewise.
        padding: zeros around the image: one number, (down, across), (top, bottom, left, right), `valid` or `same`.
        groups: groups of channels; the outputs of each must hold whole row groups of the packed weight.

    Returns:
        `(batch, out, height, width)` float32 (without `batch` where x has none); under autocast computed in float32 and
        then rounded to autocast's dtype.

    Raises:
        KernelError: no kernel is able (the message lists each one's reasons), or x or bias does not fit.
    """
    how = _geometry(kernel_size, stride, padding, dilation, groups)
    if x.is_nested:
        raise refuse_nested("Sparse convolution")
    if torch.is_autocast_enabled("cpu") and packed.layout != "masked":
        with torch.autocast("cpu", enabled=False):
            y = _any_rank(as_float32(x), packed, as_float32(bias), how)
        return y.to(torch.get_autocast_dtype("cpu"))
    return _any_rank(x, packed, bias, how)


def _any_rank(x: Tensor, packed: PackedWeight, bias: Tensor | None, how: Geometry) -> Tensor:
    if x.dim() == 3:
        return _batched(x.unsqueeze(0), packed, bias, how).squeeze(0)
    return _batched(x, packed, bias, how)


@functools.lru_cache(maxsize=1024)
def _remembered(*sizes: Any) -> Geometry:
    return geometry(*sizes)


def _geometry(*sizes: Any) -> Geometry:
    """Layers ask the same again and again; tracers must not remember what they saw."""
    if torch.compiler.is_compiling():
        return geometry(*sizes)
    try:
        return _remembered(*sizes)
    except TypeError:
        # Lists cannot be remembered.
        return geometry(*sizes)


def _batched(x: Tensor, packed: PackedWeight, bias: Tensor | None, how: Geometry) -> Tensor:
    out, columns = packed.shape
    if packed.layout == "masked":
        weight = packed.tensors["values"].to(x.dtype).view(out, -1, *how.kernel)
        top, bottom, left, right = how.padding
        padded = functional.pad(x, (left, right, top, bottom)) if any(how.padding) else x
        return functional.conv2d(padded, weight, bias, how.stride, 0, how.dilation, how.groups)
    against = against_weight(packed, how.groups)
    if against:
        raise no_kernel(why_not_conv2d(packed, how.groups))
    check_call(x, out, columns, bias, how)
    if not torch.compiler.is_compiling():
        check_eager(x, packed, bias)
        tell_flop_counters()
    if torch.compiler.is_compiling() or _profiler_enabled() or _needs_operator(x, bias):
        tensors = packed.tensors
        y: Tensor = torch.ops.sparsewright.conv2d(
            x,
            tensors["values"],
            tensors["index"],
            tensors["pointers"],
            bias,
            out,
            list(how.kernel),
            list(how.stride),
            list(how.padding),
            list(how.dilation),
            how.groups,
        )
        return y
    operand = native_operand(packed)
    # `against_weight` has let only the layout of this operand through.
    assert isinstance(operand, NativeOperand)
    return run_native(operand, x, bias, how)
