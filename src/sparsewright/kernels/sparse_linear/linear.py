"""`linear`: the public door. A few microseconds in eager inference, the registered operator everywhere else."""

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from ...layouts import PackedWeight
from . import int8_op  # noqa: F401 (registers the operators)
from .cuda_op import check_cuda_call, check_semi_structured_call
from .dispatch import no_kernel, why_not
from .int8_operand import PLANES
from .op import check_call
from .operand import kept_per_8, native_operand


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """`x @ W.T + bias` without touching what W does not keep.

    Results have the same bits from run to run, for any number of threads and any position in the batch (a batch of one
    token may differ from a larger one in the last bits). Gradients reach x and bias; the packed weight is frozen.

    Args:
        x: `(..., in)` float32, any strides, any number of tokens; on a CUDA device also float16 or bfloat16.
        packed: W `(out, in)` on the device of x: layout `vector` (float32 or float16 values, on CUDA also bfloat16),
            `int8` (CPU; x is rounded to 7 bits from two tokens on, one range per token), `semi_structured` (CUDA; x of
            the values' dtype), or `masked` (dense on request).
        bias: `(out,)` float32, on a CUDA device any of the dtypes of x, or None.

    Returns:
        `(..., out)` in the dtype of x.

    Raises:
        KernelError: no kernel is able (the message lists each one's reasons), or x or bias does not fit.
    """
    if torch.compiler.is_compiling() or _needs_operator(x, bias):
        return _through_operator(x, packed, bias)
    if packed.layout == "masked":
        return _masked_dense(x, packed, bias)
    operand = native_operand(packed)
    out, in_ = operand.out, operand.in_
    if (
        x.dtype is not torch.float32
        or not x.is_cpu
        or x.dim() == 0
        or x.shape[-1] != in_
        or not (bias is None or (bias.dtype is torch.float32 and bias.is_cpu and bias.shape == (out,)))
    ):
        check_call(x, in_, out, bias)
    if not (x.is_contiguous() or (x.dim() == 2 and x.stride(1) == 1)):
        x = x.contiguous()
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    # Said outright: the process may have another default dtype or device.
    y = torch.empty((*x.shape[:-1], out), dtype=torch.float32, device="cpu")
    tokens = x.numel() // in_
    if tokens:
        operand.run(x, bias, y, tokens)
    return y


def _needs_operator(x: Tensor, bias: Tensor | None) -> bool:
    """Whether anything is in play that must see the call or gives tensors that have no bytes of their own: gradients,
    tracing, dispatch modes, functorch, subclasses (fake tensors among them), other devices and memory formats,
    shapes without data, pending negations."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    if type(x) not in (Tensor, Parameter) or not x.is_cpu or x.is_neg() or (bias is not None and bias.is_neg()):
        return True
    return (
        x.layout is not torch.strided
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _through_operator(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    if packed.layout == "masked":
        return _masked_dense(x, packed, bias)
    tensors = packed.tensors
    if packed.layout == "int8":
        check_call(x, packed.shape[1], packed.shape[0], bias)
        rounded: Tensor = torch.ops.sparsewright.int8_linear(
            x, *(tensors[name] for name in PLANES), bias, packed.shape[0]
        )
        return rounded
    if packed.layout == "semi_structured" and tensors["values"].is_cuda:
        check_semi_structured_call(x, tensors["values"], packed.shape[1], packed.shape[0], bias)
        halved: Tensor = torch.ops.sparsewright.semi_structured_linear(
            x, tensors["values"], tensors["meta"], bias, packed.shape[0]
        )
        return halved
    on_cuda = packed.layout == "vector" and (tensors["values"].is_cuda or x.is_cuda)
    if on_cuda:
        check_cuda_call(x, tensors["values"], packed.shape[1], packed.shape[0], bias)
    elif packed.layout != "vector" or tensors["values"].dtype not in (torch.float32, torch.float16):
        raise no_kernel(why_not(packed, 2))
    else:
        check_call(x, packed.shape[1], packed.shape[0], bias)
    y: Tensor = torch.ops.sparsewright.linear(
        x,
        tensors["values"],
        tensors["index"],
        tensors["pointers"],
        bias,
        packed.shape[0],
        kept_per_8(packed.pattern),
    )
    return y


def _masked_dense(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    return functional.linear(x, packed.tensors["values"].to(x.dtype), bias)
