"""The registered operators: what autograd, torch.compile and torch.export see.

`sparsewright::linear` takes the tensors of the vector layout; `sparsewright::linear_input_grad` is its backward. The
weight is frozen: gradients reach x and bias only.
"""

from typing import Any

import torch
from torch import Tensor

from ...core import KernelError
from ...layouts.vector import unpack_operand
from .autocast import register_autocast
from .operand import make_operand

library = torch.library.Library("sparsewright", "DEF")
library.define(
    "linear(Tensor x, Tensor values, Tensor index, Tensor pointers, Tensor? bias, SymInt out, int kept_per_8=0)"
    " -> Tensor"
)
library.define("linear_input_grad(Tensor grad, Tensor values, Tensor index, Tensor pointers, SymInt in_) -> Tensor")


def check_call(x: Tensor, in_: int, out: int, bias: Tensor | None) -> None:
    """Raise KernelError unless x and bias fit the weight and the kernels."""
    if x.dim() == 0 or x.shape[-1] != in_:
        raise KernelError(f"Sparse linear takes x of shape (..., {in_}), got {tuple(x.shape)}.")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32:
            raise KernelError(
                f"The sparse kernels compute in float32, got {name} of {tensor.dtype}. Cast it, or leave it dense."
            )
        if tensor.device.type not in ("cpu", "meta"):
            raise KernelError(f"The sparse kernels run on the CPU, got {name} on {tensor.device}. Move it there.")
    if bias is not None and tuple(bias.shape) != (out,):
        raise KernelError(f"Sparse linear takes a bias of shape ({out},), got {tuple(bias.shape)}.")


def _linear_cpu(
    x: Tensor, values: Tensor, index: Tensor, pointers: Tensor, bias: Tensor | None, out: int, kept_per_8: int = 0
) -> Tensor:
    in_ = x.shape[-1]
    check_call(x, in_, out, bias)
    groups = pointers.shape[1] - 1
    if groups * values.shape[1] < out or (groups - 1) * values.shape[1] >= out or index.numel() != values.shape[0]:
        raise KernelError(
            f"The operand has {groups} groups of {values.shape[1]} rows and {index.numel()} kept columns for "
            f"{values.shape[0]} rows of values; it is not the operand of {out} outputs."
        )
    y = x.new_empty(*x.shape[:-1], out)
    if y.numel():
        operand = make_operand(values, index, pointers, out, in_, kept_per_8)
        rows = x.contiguous()
        operand.run(rows, None if bias is None else bias.contiguous(), y, x.numel() // in_)
    return y


def _linear_fake(
    x: Tensor, values: Tensor, index: Tensor, pointers: Tensor, bias: Tensor | None, out: int, kept_per_8: int = 0
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


def _input_grad_cpu(grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, in_: int) -> Tensor:
    return grad @ unpack_operand(values, index, pointers, grad.shape[-1], in_).to(grad.dtype)


def _input_grad_fake(grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, in_: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, pointers, bias, *_ = inputs
    ctx.save_for_backward(values, index, pointers)
    ctx.in_, ctx.has_bias = x.shape[-1], bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = torch.ops.sparsewright.linear_input_grad(grad, *ctx.saved_tensors, ctx.in_)
    if ctx.has_bias and ctx.needs_input_grad[4]:
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return of_x, None, None, None, of_bias, None, None


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, index, pointers, _ = inputs
    ctx.save_for_backward(values, index, pointers)
    ctx.out = grad.shape[-1]


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.sparsewright.linear(grad, *ctx.saved_tensors, None, ctx.out), None, None, None, None


library.impl("linear", _linear_cpu, "CPU")
library.impl("linear_input_grad", _input_grad_cpu, "CPU")
torch.library.register_fake("sparsewright::linear", _linear_fake, lib=library)
torch.library.register_fake("sparsewright::linear_input_grad", _input_grad_fake, lib=library)
torch.library.register_autograd("sparsewright::linear", _linear_backward, setup_context=_keep_for_backward, lib=library)
torch.library.register_autograd(
    "sparsewright::linear_input_grad", _input_grad_backward, setup_context=_keep_for_double_backward, lib=library
)
register_autocast(library, "linear", activations=(0, 4), lowers=True)
register_autocast(library, "linear_input_grad", activations=(0,), lowers=False)
