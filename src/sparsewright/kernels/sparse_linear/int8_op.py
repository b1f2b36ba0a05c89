"""The registered operators of int8 weights: what autograd, torch.compile and torch.export see.

`sparsewright::int8_linear` takes the tensors of the layout `int8`; `sparsewright::int8_linear_input_grad` is its
backward. The weight is frozen: gradients reach x and bias, through the weight as it was rounded; the rounding of x
counts as exact, as is usual.
"""

from typing import Any

import torch
from torch import Tensor

from ...layouts.int8 import unpack_operand
from .autocast import register_autocast
from .batching import register_batching
from .int8_operand import PLANES, make_int8_operand
from .library import library
from .op import check_call

library.define(
    "int8_linear(Tensor x, Tensor values, Tensor columns, Tensor pointers, Tensor scale, Tensor sums, Tensor? bias,"
    " SymInt out) -> Tensor"
)
library.define(
    "int8_linear_input_grad(Tensor grad, Tensor values, Tensor columns, Tensor pointers, Tensor scale, SymInt in_)"
    " -> Tensor"
)


def _linear_cpu(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    pointers: Tensor,
    scale: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    out: int,
) -> Tensor:
    in_ = x.shape[-1]
    check_call(x, in_, out, bias)
    operand = make_int8_operand(dict(zip(PLANES, (values, columns, pointers, scale, sums))), out, in_)
    y = x.new_empty(*x.shape[:-1], out)
    if y.numel():
        operand.run(x.contiguous(), None if bias is None else bias.contiguous(), y, x.numel() // in_)
    return y


def _linear_fake(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    pointers: Tensor,
    scale: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    out: int,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


def _input_grad_cpu(grad: Tensor, values: Tensor, columns: Tensor, pointers: Tensor, scale: Tensor, in_: int) -> Tensor:
    return grad @ unpack_operand(values, columns, pointers, scale, grad.shape[-1], in_).to(grad.dtype)


def _input_grad_fake(
    grad: Tensor, values: Tensor, columns: Tensor, pointers: Tensor, scale: Tensor, in_: int
) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, columns, pointers, scale, _, bias, _ = inputs
    ctx.save_for_backward(values, columns, pointers, scale)
    ctx.in_, ctx.has_bias = x.shape[-1], bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = torch.ops.sparsewright.int8_linear_input_grad(grad, *ctx.saved_tensors, ctx.in_)
    if ctx.has_bias and ctx.needs_input_grad[6]:
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return of_x, None, None, None, None, None, of_bias, None


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, columns, pointers, scale, _ = inputs
    ctx.save_for_backward(values, columns, pointers, scale)
    ctx.out, ctx.in_ = grad.shape[-1], output.shape[-1]


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, columns, pointers, scale = ctx.saved_tensors
    weight = unpack_operand(values, columns, pointers, scale, ctx.out, ctx.in_)
    return grad @ weight.T.to(grad.dtype), None, None, None, None, None


library.impl("int8_linear", _linear_cpu, "CPU")
library.impl("int8_linear_input_grad", _input_grad_cpu, "CPU")
torch.library.register_fake("sparsewright::int8_linear", _linear_fake, lib=library)
torch.library.register_fake("sparsewright::int8_linear_input_grad", _input_grad_fake, lib=library)
torch.library.register_autograd(
    "sparsewright::int8_linear", _linear_backward, setup_context=_keep_for_backward, lib=library
)
torch.library.register_autograd(
    "sparsewright::int8_linear_input_grad", _input_grad_backward, setup_context=_keep_for_double_backward, lib=library
)
register_autocast(library, "int8_linear", activations=(0, 6), lowers=True)
register_autocast(library, "int8_linear_input_grad", activations=(0,), lowers=False)
register_batching(library, "int8_linear", bias=6)
register_batching(library, "int8_linear_input_grad")
