"""What the registered operators do on a CUDA device: Triton for the layout `vector`, torch's sparse tensor cores for
`semi_structured`. Both load their library at the first call.

`sparsewright::semi_structured_linear` has no gradient for x: the transpose of a 2:4 weight is not 2:4.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear
from torch.nn.functional import pad

from ...core import KernelError
from ...layouts.semi_structured import unpack_operand
from .derived import DerivedCache
from .library import library

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

library.define(
    "semi_structured_linear(Tensor x, Tensor values, Tensor meta, Tensor? bias, SymInt out) -> Tensor",
)


def check_cuda_call(x: Tensor, values: Tensor, in_: int, out: int, bias: Tensor | None) -> None:
    """Raise KernelError unless x and bias fit a weight on a CUDA device and lie where it lies."""
    if x.dim() == 0 or x.shape[-1] != in_:
        raise KernelError(f"Sparse linear takes x of shape (..., {in_}), got {tuple(x.shape)}.")
    if bias is not None and tuple(bias.shape) != (out,):
        raise KernelError(f"Sparse linear takes a bias of shape ({out},), got {tuple(bias.shape)}.")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != values.device:
            raise KernelError(
                f"Sparse linear takes all tensors on one device, got {name} on {tensor.device} and the weight on "
                f"{values.device}. Move one of them."
            )
        if tensor.dtype not in FLOATS:
            raise KernelError(
                f"The CUDA kernels take float32, float16 and bfloat16, got {name} of {tensor.dtype}. Cast it."
            )


def check_semi_structured_call(x: Tensor, values: Tensor, in_: int, out: int, bias: Tensor | None) -> None:
    """Raise KernelError unless x and bias fit a 2:4 weight on sparse tensor cores."""
    check_cuda_call(x, values, in_, out, bias)
    if x.dtype != values.dtype:
        raise KernelError(
            f"Sparse tensor cores take x in the dtype of the values, got {x.dtype} and {values.dtype}. Cast x, or move "
            "the whole model with .half() or .bfloat16()."
        )


def _linear_cuda(
    x: Tensor, values: Tensor, index: Tensor, pointers: Tensor, bias: Tensor | None, out: int, kept_per_8: int = 0
) -> Tensor:
    from .triton import triton_linear

    check_cuda_call(x, values, x.shape[-1] if x.dim() else 0, out, bias)
    return triton_linear(x, values, index, pointers, bias, out)


def _input_grad_cuda(grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, in_: int) -> Tensor:
    from .triton_backward import triton_input_grad

    return triton_input_grad(grad, values, index, pointers, in_)


def _weight_grad_cuda(grad: Tensor, x: Tensor, index: Tensor, pointers: Tensor, group: int) -> Tensor:
    from .triton_backward import triton_weight_grad

    return triton_weight_grad(grad, x, index, pointers, group)


def _semi_structured_cuda(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, out: int) -> Tensor:
    rows, columns = values.shape[0], 2 * values.shape[1]
    check_semi_structured_call(x, values, x.shape[-1] if x.dim() else 0, out, bias)
    if not x.numel():
        return x.new_zeros(*x.shape[:-1], out)
    given = pad(x.reshape(-1, x.shape[-1]), (0, columns - x.shape[-1])).contiguous()
    added = None if bias is None else pad(bias.to(x.dtype), (0, rows - out))
    y: Tensor = dense_linear(given, torch_weight(values, meta), added)[:, :out]
    return y.reshape(*x.shape[:-1], out)


def torch_weight(values: Tensor, meta: Tensor) -> Tensor:
    """torch's semi-structured tensor of an operand of the layout: cuSPARSELt's where torch has it, made once by
    `to_sparse_semi_structured`, else CUTLASS's, which takes the operand's tensors as they are."""
    if torch.backends.cusparselt.is_available():
        return _compressed.get(
            (values, meta), lambda: torch.sparse.to_sparse_semi_structured(unpack_operand(values, meta))
        )
    shape = torch.Size((values.shape[0], 2 * values.shape[1]))
    # Not kept: it is made in no time, and it would keep its own memory alive.
    wrapped: Tensor = torch.sparse.SparseSemiStructuredTensorCUTLASS(shape, values, meta, None, None, None)
    return wrapped


_compressed: DerivedCache[Tensor] = DerivedCache()


def _semi_structured_fake(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, out: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.has_bias = inputs[3] is not None


def _semi_structured_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.needs_input_grad[0]:
        raise KernelError(
            "A 2:4 weight on sparse tensor cores has no gradient for x, because its transpose is not 2:4. Train with "
            "the layout 'vector', or run this layer under torch.no_grad()."
        )
    of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.has_bias and ctx.needs_input_grad[3] else None
    return None, None, None, of_bias, None


library.impl("linear", _linear_cuda, "CUDA")
library.impl("linear_input_grad", _input_grad_cuda, "CUDA")
library.impl("linear_weight_grad", _weight_grad_cuda, "CUDA")
library.impl("semi_structured_linear", _semi_structured_cuda, "CUDA")
torch.library.register_fake("sparsewright::semi_structured_linear", _semi_structured_fake, lib=library)
torch.library.register_autograd(
    "sparsewright::semi_structured_linear", _semi_structured_backward, setup_context=_keep_for_backward, lib=library
)
