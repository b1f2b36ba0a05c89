"""The registered operators: what autograd, torch.compile and torch.export see.

`sparsewright::linear` takes the tensors of the vector layout; its gradients, also that of the kept values, are in
`gradients`.
"""

from typing import Any

import torch
from torch import Tensor

from ...core import KernelError
from .autocast import register_autocast
from .batching import register_batching
from .gradients import weight_grad
from .library import library
from .operand import make_operand

library.define(
    "linear(Tensor x, Tensor values, Tensor index, Tensor pointers, Tensor? bias, SymInt out, int kept_per_8=0)"
    " -> Tensor"
)


def check_call(x: Tensor, in_: int, out: int, bias: Tensor | None) -> None:
    """Raise KernelError unless x and bias fit the weight and the kernels."""
    if x.layout != torch.strided:
        raise KernelError(f"The sparse kernels take x as a plain tensor, got {x.layout}. Call x.to_dense() first.")
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
    if bias is not None and bias.device.type != "cpu" and x.device.type == "cpu":
        raise KernelError(f"Sparse linear takes x and bias on one device, got cpu and {bias.device}. Move one of them.")
    if bias is not None and tuple(bias.shape) != (out,):
        raise KernelError(f"Sparse linear takes a bias of shape ({out},), got {tuple(bias.shape)}.")


def _linear_cpu(
    x: Tensor, values: Tensor, index: Tensor, pointers: Tensor, bias: Tensor | None, out: int, kept_per_8: int = 0
) -> Tensor:
    in_ = x.shape[-1]
    check_call(x, in_, out, bias)
    operand = make_operand(values, index, pointers, out, in_, kept_per_8)
    y = x.new_empty(*x.shape[:-1], out)
    if y.numel():
        rows = x.contiguous()
        operand.run(rows, None if bias is None else bias.contiguous(), y, x.numel() // in_)
    return y


def _linear_fake(
    x: Tensor, values: Tensor, index: Tensor, pointers: Tensor, bias: Tensor | None, out: int, kept_per_8: int = 0
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, pointers, bias, *_ = inputs
    # x is kept for the gradient of the values only.
    ctx.save_for_backward(values, index, pointers, *((x,) if values.requires_grad else ()))
    ctx.in_, ctx.has_bias = x.shape[-1], bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x = of_values = of_bias = None
    values, index, pointers, *x = ctx.saved_tensors
    if ctx.needs_input_grad[0]:
        of_x = torch.ops.sparsewright.linear_input_grad(grad, values, index, pointers, ctx.in_)
    if ctx.needs_input_grad[1]:
        of_values = weight_grad(grad, x[0], values, index, pointers)
    if ctx.has_bias and ctx.needs_input_grad[4]:
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return of_x, of_values, None, None, of_bias, None, None


library.impl("linear", _linear_cpu, "CPU")
torch.library.register_fake("sparsewright::linear", _linear_fake, lib=library)
torch.library.register_autograd("sparsewright::linear", _linear_backward, setup_context=_keep_for_backward, lib=library)
register_autocast(library, "linear", activations=(0, 4), lowers=True)
register_batching(library, "linear", bias=4)
