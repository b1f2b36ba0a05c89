"""The registered operators: what autograd, torch.compile and torch.export see of sparse convolution.

`sparsewright::conv2d` takes the tensors of the vector layout; `sparsewright::conv2d_input_grad` is its backward, which
convolves densely with the unpacked weight. The weight is frozen: gradients reach x and bias only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from ...core import KernelError
from ...layouts.vector import unpack_operand
from ..sparse_linear.operand import NativeOperand, make_operand
from ..sparse_linear.threads import threads_for
from .geometry import Geometry, check_call

library = torch.library.Library("sparsewright", "FRAGMENT")
_SIZES = "int[2] kernel_size, int[2] stride, int[4] padding, int[2] dilation, int groups"
library.define(
    f"conv2d(Tensor x, Tensor values, Tensor index, Tensor pointers, Tensor? bias, SymInt out, {_SIZES}) -> Tensor"
)
library.define(
    "conv2d_input_grad(Tensor grad, Tensor values, Tensor index, Tensor pointers, SymInt[4] input_size, "
    f"{_SIZES}) -> Tensor"
)


def geometry_of(
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Geometry:
    """The operator's plain lists as one value."""
    return Geometry(
        (kernel_size[0], kernel_size[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1], padding[2], padding[3]),
        (dilation[0], dilation[1]),
        groups,
    )


def channels_come_last(x: Tensor) -> bool:
    """Whether the bytes of x lie pixel by pixel; then those of the output will too."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def empty_output(x: Tensor, out: int, how: Geometry, last: bool) -> Tensor:
    """Room for the output `(batch, out, height, width)`, channels last or first."""
    size = (x.shape[0], out, *how.out_size(x.shape[2], x.shape[3]))
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


def run_native(operand: NativeOperand, x: Tensor, bias: Tensor | None, how: Geometry) -> Tensor:
    """Convolve: x `(batch, channels, height, width)` float32 on the CPU, checked; any strides."""
    last = channels_come_last(x)
    if not last:
        x = x.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    y = empty_output(x, operand.out, how, last)
    batch, channels, height, width = x.shape
    _, _, out_h, out_w = y.shape
    if not batch:
        return y
    pixels = batch * out_h * out_w
    top, _, left, _ = how.padding
    if how.groups == 1 and not any(how.padding):
        # Every output pixel reads memory that lies in one piece, so that it is a token of sparse linear.
        if last and how.is_pointwise:
            operand.run(x.permute(0, 2, 3, 1).reshape(-1, channels), bias, y, pixels)
            return y
        if not last and how.kernel == (height, width) and how.dilation == (1, 1):
            operand.run(x.reshape(batch, -1), bias, y, pixels)
            return y
    kept = operand.density * operand.out * operand.in_
    threads = threads_for(kept * pixels, 4 * kept)
    sizes = (batch, channels, height, width, *how.kernel, *how.stride, *how.dilation)
    operand.native.conv2d(
        x.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        (*sizes, top, left, out_h, out_w, how.groups),
        last,
        threads,
    )
    return y


def _conv2d_cpu(
    x: Tensor, values: Tensor, index: Tensor, pointers: Tensor, bias: Tensor | None, out: int, *sizes: Any
) -> Tensor:
    how = geometry_of(*sizes)
    if not how.groups or x.dim() != 4 or x.shape[1] % how.groups:
        raise KernelError(
            f"Sparse convolution takes x of shape (batch, channels, height, width) whose channels fall into "
            f"{how.groups} groups, got {tuple(x.shape)}."
        )
    columns = x.shape[1] // how.groups * how.kernel[0] * how.kernel[1]
    check_call(x, out, columns, bias, how)
    operand = make_operand(values, index, pointers, out, columns, 0)
    if how.groups > 1 and out % (how.groups * operand.group):
        raise KernelError(
            f"Groups of channels must hold whole row groups, got {out} outputs in {how.groups} groups and "
            f"{operand.group} rows that share a choice. Use a pattern with narrower row groups, or leave the layer "
            "dense."
        )
    return run_native(operand, x, bias, how)


def _conv2d_fake(
    x: Tensor, values: Tensor, index: Tensor, pointers: Tensor, bias: Tensor | None, out: int, *sizes: Any
) -> Tensor:
    return empty_output(x, out, geometry_of(*sizes), channels_come_last(x))


def _input_grad_cpu(
    grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, input_size: list[int], *sizes: Any
) -> Tensor:
    how = geometry_of(*sizes)
    batch, channels, height, width = input_size
    columns = channels // how.groups * how.kernel[0] * how.kernel[1]
    weight = unpack_operand(values, index, pointers, grad.shape[1], columns).to(grad.dtype)
    weight = weight.view(grad.shape[1], -1, *how.kernel)
    top, bottom, left, right = how.padding
    padded = (batch, channels, height + top + bottom, width + left + right)
    of_padded: Tensor = conv2d_input(padded, weight, grad, how.stride, 0, how.dilation, how.groups)
    return of_padded[:, :, top : top + height, left : left + width].contiguous()


def _input_grad_fake(
    grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, input_size: list[int], *sizes: Any
) -> Tensor:
    return grad.new_empty(input_size)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, pointers, bias, _, *sizes = inputs
    ctx.save_for_backward(values, index, pointers)
    ctx.input_size, ctx.sizes, ctx.has_bias = x.shape, sizes, bias is not None


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = torch.ops.sparsewright.conv2d_input_grad(grad, *ctx.saved_tensors, ctx.input_size, *ctx.sizes)
    if ctx.has_bias and ctx.needs_input_grad[4]:
        of_bias = grad.sum((0, 2, 3))
    return of_x, None, None, None, of_bias, *[None] * 6


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, index, pointers, _, *sizes = inputs
    ctx.save_for_backward(values, index, pointers)
    ctx.out, ctx.sizes = grad.shape[1], sizes


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_grad = torch.ops.sparsewright.conv2d(grad, *ctx.saved_tensors, None, ctx.out, *ctx.sizes)
    return of_grad, *[None] * 9


library.impl("conv2d", _conv2d_cpu, "CPU")
library.impl("conv2d_input_grad", _input_grad_cpu, "CPU")
torch.library.register_fake("sparsewright::conv2d", _conv2d_fake, lib=library)
torch.library.register_fake("sparsewright::conv2d_input_grad", _input_grad_fake, lib=library)
torch.library.register_autograd("sparsewright::conv2d", _conv2d_backward, setup_context=_keep_for_backward, lib=library)
torch.library.register_autograd(
    "sparsewright::conv2d_input_grad", _input_grad_backward, setup_context=_keep_for_double_backward, lib=library
)
