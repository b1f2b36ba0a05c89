"""`linear`: the public door. A few microseconds in eager inference, the registered operator everywhere else."""

import torch
from torch import Tensor
from torch.nn import Parameter

from ...layouts import PackedWeight
from .activations import CODES, Activation, apply_activation, check_activation
from .autocast import as_float32
from .op import check_call
from .operand import native_operand
from .registered import masked_dense, registered_linear


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
    """`activation(x @ W.T + bias)` without touching what W does not keep.

    Results have the same bits from run to run, for any number of threads and any position in the batch (a batch of one
    token may differ from a larger one in the last bits). Gradients reach x and bias; the packed weight is frozen.

    Args:
        x: `(..., in)` float32, any strides, any number of tokens; also float16 or bfloat16 on a CUDA device and under
            `torch.autocast("cpu")`.
        packed: W `(out, in)` on the device of x: layout `vector` (float32 or float16 values, on CUDA also bfloat16),
            `nmg` (CPU, the same), `int8_weights` (CPU; bytes, x as it is), `int8` (CPU; x is rounded to 7 bits from two
            tokens on, one range per token), `semi_structured` (CUDA; x of the values' dtype), or `masked` (dense on
            request).
        bias: `(out,)` float32, on a CUDA device any of the dtypes of x, or None.
        activation: `relu`, `gelu` (its exact form) or `gelu_tanh`, applied to y while it is in the nearest cache.

    Returns:
        `(..., out)` in the dtype of x; under autocast computed in float32 and then rounded to autocast's dtype.

    Raises:
        KernelError: no kernel is able (the message lists each one's reasons), or x or bias does not fit.
    """
    if activation is not None:
        check_activation(activation)
    if torch.is_autocast_enabled("cpu") and packed.layout != "masked":
        with torch.autocast("cpu", enabled=False):
            y = linear(as_float32(x), packed, as_float32(bias), activation)
        return y.to(torch.get_autocast_dtype("cpu"))
    if torch.compiler.is_compiling() or _needs_operator(x, bias):
        return apply_activation(registered_linear(x, packed, bias), activation)
    if packed.layout == "masked":
        return apply_activation(masked_dense(x, packed, bias), activation)
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
        operand.run(x, bias, y, tokens, CODES[activation])
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
