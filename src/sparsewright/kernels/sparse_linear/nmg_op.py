"""The registered operators of n:m:g weights: what autograd, torch.compile and torch.export see.

`sparsewright::nmg_linear` takes the tensors of the layout `nmg`; `sparsewright::nmg_linear_input_grad` is its backward.
The weight is frozen: gradients reach x and bias only.
"""

from typing import Any

import torch
from torch import Tensor

from ...layouts.nmg import unpack_operand
from .autocast import register_autocast
from .batching import register_batching
from .library import library
from .nmg_operand import make_nmg_operand
from .op import check_call
from .operand_checks import check_nmg

library.define("nmg_linear(Tensor x, Tensor values, Tensor index, Tensor? bias, SymInt out, int m) -> Tensor")
library.define("nmg_linear_input_grad(Tensor grad, Tensor values, Tensor index, SymInt in_, int m) -> Tensor")


def _linear_cpu(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out: int, m: int) -> Tensor:
    in_ = x.shape[-1]
    check_call(x, in_, out, bias)
    operand = make_nmg_operand(values, index, out, in_, m)
    y = x.new_empty(*x.shape[:-1], out)
    if y.numel():
        operand.run(x.contiguous(), None if bias is None else bias.contiguous(), y, x.numel() // in_)
    return y


def _linear_fake(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out: int, m: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


def _input_grad_cpu(grad: Tensor, values: Tensor, index: Tensor, in_: int, m: int) -> Tensor:
    check_nmg(values, index, grad.shape[-1], in_, m)
    return grad @ unpack_operand(values, index, grad.shape[-1], in_, m).to(grad.dtype)


def _input_grad_fake(grad: Tensor, values: Tensor, index: Tensor, in_: int, m: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, bias, _, m = inputs
    ctx.save_for_backward(values, index)
    ctx.in_, ctx.m, ctx.has_bias = x.shape[-1], m, bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = torch.ops.sparsewright.nmg_linear_input_grad(grad, *ctx.saved_tensors, ctx.in_, ctx.m)
    if ctx.has_bias and ctx.needs_input_grad[3]:
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return of_x, None, None, of_bias, None, None


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, index, _, m = inputs
    ctx.save_for_backward(values, index)
    ctx.out, ctx.m = grad.shape[-1], m


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_grad = torch.ops.sparsewright.nmg_linear(grad, *ctx.saved_tensors, None, ctx.out, ctx.m)
    return of_grad, None, None, None, None


library.impl("nmg_linear", _linear_cpu, "CPU")
library.impl("nmg_linear_input_grad", _input_grad_cpu, "CPU")
torch.library.register_fake("sparsewright::nmg_linear", _linear_fake, lib=library)
torch.library.register_fake("sparsewright::nmg_linear_input_grad", _input_grad_fake, lib=library)
torch.library.register_autograd(
    "sparsewright::nmg_linear", _linear_backward, setup_context=_keep_for_backward, lib=library
)
torch.library.register_autograd(
    "sparsewright::nmg_linear_input_grad", _input_grad_backward, setup_context=_keep_for_double_backward, lib=library
)
register_autocast(library, "nmg_linear", activations=(0, 3), lowers=True)
register_autocast(library, "nmg_linear_input_grad", activations=(0,), lowers=False)
register_batching(library, "nmg_linear", bias=3)
register_batching(library, "nmg_linear_input_grad")
