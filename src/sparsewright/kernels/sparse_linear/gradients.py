"""Gradients of sparse linear as operators: `linear_input_grad` for x, `linear_weight_grad` for the kept values.

Both do work for what is kept only. With `linear` they are closed under differentiation, so that derivatives of any
order are there.
"""

from typing import Any

import torch
from torch import Tensor

from ..._native import Operand
from ...core import KernelError, instruction_set
from ...layouts.vector import block_columns
from .autocast import register_autocast
from .batching import register_batching
from .library import library
from .operand import VALUE_CODES
from .operand_checks import check_vector
from .strips import strips_of, turned_strips_of
from .threads import threads_for
from .transposed import structure_of

library.define("linear_input_grad(Tensor grad, Tensor values, Tensor index, Tensor pointers, SymInt in_) -> Tensor")
library.define("linear_weight_grad(Tensor grad, Tensor x, Tensor index, Tensor pointers, SymInt group) -> Tensor")

# Rows that share their columns can wait in registers; single rows go by columns.
_LEAST_SHARED = 4


def _native(values: Tensor | None, index: Tensor, pointers: Tensor, out: int, in_: int, group: int) -> Operand:
    instruction_set()  # a wrong SPARSEWRIGHT_ISA is told in one sentence
    check_vector(values, index, pointers, None, out, in_, group)
    blocks = pointers.shape[0]
    address, kind = (0, 0) if values is None else (values.data_ptr(), VALUE_CODES[values.dtype])
    native = Operand(
        address,
        kind,
        0,
        index.data_ptr() if index.numel() else 0,
        pointers.data_ptr(),
        out,
        in_,
        group,
        blocks,
        block_columns(in_, blocks),
        0,
    )
    # The cache holds the strips as long as the index lives.
    strips = strips_of(index, pointers, out, in_) if group == 1 else None
    if strips is not None:
        native.set_strips(strips.records.data_ptr(), strips.counts.data_ptr())
    return native


def _rows(tensor: Tensor, name: str) -> Tensor:
    """`(tokens, features)` in memory that a kernel can read."""
    if tensor.dtype != torch.float32:
        raise KernelError(f"The gradients of the sparse kernels are float32, got {name} of {tensor.dtype}. Cast it.")
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(1) == 1 and flat.stride(0) >= flat.shape[1] else flat.contiguous()


def _threads(multiply_adds: int, kept: int) -> int:
    return threads_for(multiply_adds, 4 * kept)


def _input_grad_cpu(grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, in_: int) -> Tensor:
    out, group = grad.shape[-1], values.shape[1] if values.dim() == 2 else 0
    result = grad.new_empty(*grad.shape[:-1], in_)
    if not result.numel():
        return result
    values, index, pointers = values.contiguous(), index.contiguous(), pointers.contiguous()
    dy = _rows(grad, "a gradient")
    native = _native(values, index, pointers, out, in_, group)
    tokens, threads = dy.shape[0], _threads(values.numel() * dy.shape[0], values.numel())
    if group >= _LEAST_SHARED:
        native.input_grad(dy.data_ptr(), dy.stride(0), tokens, result.data_ptr(), threads)
        return result
    if group == 1 and values.dtype == torch.float32 and strips_of(index, pointers, out, in_) is not None:
        turned = turned_strips_of(index, pointers, out, in_)
        native.strip_input_grad(
            dy.data_ptr(),
            dy.stride(0),
            tokens,
            result.data_ptr(),
            turned.records.data_ptr(),
            turned.counts.data_ptr(),
            turned.blocks,
            turned.block_columns,
            threads,
        )
        return result
    columns = structure_of(index, pointers, group, in_)
    native.input_grad_by_columns(
        dy.data_ptr(),
        dy.stride(0),
        tokens,
        result.data_ptr(),
        columns.index.data_ptr(),
        columns.pointers.data_ptr(),
        columns.places.data_ptr(),
        columns.pointers.shape[0],
        columns.block_groups,
        threads,
    )
    return result


def _weight_grad_cpu(grad: Tensor, x: Tensor, index: Tensor, pointers: Tensor, group: int) -> Tensor:
    if grad.shape[:-1] != x.shape[:-1]:
        raise KernelError(f"The gradient and x must have the same tokens, got {tuple(grad.shape)}, {tuple(x.shape)}.")
    if not (index.numel() and x.numel() and grad.numel()):
        return grad.new_zeros(index.numel(), group)
    result = grad.new_empty(index.numel(), group)
    index, pointers = index.contiguous(), pointers.contiguous()
    dy, rows = _rows(grad, "a gradient"), _rows(x, "x")
    native = _native(None, index, pointers, dy.shape[1], rows.shape[1], group)
    tokens, threads = dy.shape[0], _threads(result.numel() * dy.shape[0], result.numel())
    native.weight_grad(dy.data_ptr(), dy.stride(0), rows.data_ptr(), rows.stride(0), tokens, result.data_ptr(), threads)
    return result


def _input_grad_fake(grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, in_: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_)


def _weight_grad_fake(grad: Tensor, x: Tensor, index: Tensor, pointers: Tensor, group: int) -> Tensor:
    return grad.new_empty(index.shape[0], group)


def _keep_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dy, values, index, pointers = ctx.saved_tensors
    of_dy = of_values = None
    if ctx.needs_input_grad[0]:
        of_dy = torch.ops.sparsewright.linear(grad, values, index, pointers, None, dy.shape[-1])
    if ctx.needs_input_grad[1]:
        of_values = weight_grad(dy, grad, values, index, pointers)
    return of_dy, of_values, None, None, None


def _keep_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _weight_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, index, pointers = ctx.saved_tensors
    of_dy = of_x = None
    if ctx.needs_input_grad[0]:
        of_dy = torch.ops.sparsewright.linear(x, grad, index, pointers, None, dy.shape[-1])
    if ctx.needs_input_grad[1]:
        of_x = torch.ops.sparsewright.linear_input_grad(dy, grad, index, pointers, x.shape[-1])
    return of_dy, of_x, None, None, None


def weight_grad(grad: Tensor, x: Tensor, values: Tensor, index: Tensor, pointers: Tensor) -> Tensor:
    """Gradient of the values, `(kept, G)` in their dtype, from `(..., out)` and `(..., in)`."""
    of_values: Tensor = torch.ops.sparsewright.linear_weight_grad(grad, x, index, pointers, values.shape[1])
    return of_values.to(values.dtype)


library.impl("linear_input_grad", _input_grad_cpu, "CPU")
library.impl("linear_weight_grad", _weight_grad_cpu, "CPU")
torch.library.register_fake("sparsewright::linear_input_grad", _input_grad_fake, lib=library)
torch.library.register_fake("sparsewright::linear_weight_grad", _weight_grad_fake, lib=library)
torch.library.register_autograd(
    "sparsewright::linear_input_grad", _input_grad_backward, setup_context=_keep_input_grad, lib=library
)
torch.library.register_autograd(
    "sparsewright::linear_weight_grad", _weight_grad_backward, setup_context=_keep_weight_grad, lib=library
)
register_autocast(library, "linear_input_grad", activations=(0,), lowers=False)
register_batching(library, "linear_input_grad")
register_autocast(library, "linear_weight_grad", activations=(0, 1), lowers=False)
