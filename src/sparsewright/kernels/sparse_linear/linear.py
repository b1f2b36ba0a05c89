"""`linear`: the public door. A few microseconds in eager inference, the registered operator everywhere else."""

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from ...core import NMG
from ...layouts import PackedWeight
from . import int8_op, nmg_op  # noqa: F401 (registers the operators)
from .activations import CODES, Activation, apply_activation, check_activation
from .autocast import as_float32
from .dispatch import no_kernel, why_not
from .int8_operand import PLANES
from .op import check_call
from .operand import kept_per_8, native_operand


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
    """`activation(x @ W.T + bias)` without touching what W does not keep.

    Results have the same bits from run to run, for any number of threads and any position in the batch (a batch of one
    token may differ from a larger one in the last bits). Gradients reach x and bias; the packed weight is frozen.

    Args:
        x: `(..., in)` float32, any strides, any number of tokens; under `torch.autocast("cpu")` also bfloat16 or
            float16.
        packed: W `(out, in)`: layout `vector` (float32 or float16 values), `int8_weights` (bytes, x as it is), `int8`
            (x is rounded to 7 bits from two tokens on, one range per token), `nmg` (as `vector`), or `masked`
            (dense on request).
        bias: `(out,)` float32, or None.
        activation: `relu`, `gelu` (its exact form) or `gelu_tanh`, applied to y while it is in the nearest cache.

    Returns:
        `(..., out)` float32; under autocast computed in float32 and then rounded to autocast's dtype.

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
        return apply_activation(_through_operator(x, packed, bias), activation)
    if packed.layout == "masked":
        return apply_activation(_masked_dense(x, packed, bias), activation)
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
    tracing, dispatch modes, functorch, subclasses (fake tensors among them), shapes without data, pending negations."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    if type(x) not in (Tensor, Parameter) or x.is_meta or x.is_neg() or (bias is not None and bias.is_neg()):
        return True
    return (
        torch._C._len_torch_dispatch_stack() > 0
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
    if packed.layout == "nmg" and isinstance(packed.pattern, NMG) and not why_not(packed, 2)["nmg_lane"]:
        check_call(x, packed.shape[1], packed.shape[0], bias)
        grouped: Tensor = torch.ops.sparsewright.nmg_linear(
            x, tensors["values"], tensors["index"], bias, packed.shape[0], packed.pattern.m
        )
        return grouped
    scaled = packed.layout == "int8_weights"
    if not scaled and (packed.layout != "vector" or tensors["values"].dtype not in (torch.float32, torch.float16)):
        raise no_kernel(why_not(packed, 2))
    check_call(x, packed.shape[1], packed.shape[0], bias)
    y: Tensor = torch.ops.sparsewright.linear(
        x,
        tensors["values"],
        tensors["index"],
        tensors["pointers"],
        None if scaled else bias,
        packed.shape[0],
        kept_per_8(packed.pattern),
    )
    if scaled:
        y = y * tensors["scale"][: packed.shape[0]]
        return y if bias is None else y + bias
    return y


def _masked_dense(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    return functional.linear(x, packed.tensors["values"].to(x.dtype), bias)
