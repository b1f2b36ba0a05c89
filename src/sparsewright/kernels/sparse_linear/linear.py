"""`linear`: the public door. A few microseconds in eager inference, the registered operator everywhere else."""

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from ...layouts import PackedWeight
from . import int8_op  # noqa: F401 (registers the operators)
from .candidates import CANDIDATES
from .dispatch import why_not
from .int8_operand import PLANES
from .missing import OnMissing, missing_choice, run_dense
from .no_kernel import no_kernel
from .op import check_call
from .operand import kept_per_8, native_operand
from .operators import able_operator, run_operator

_BUILT_IN = frozenset(candidate.layout for candidate in CANDIDATES)


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, on_missing: OnMissing | None = None) -> Tensor:
    """`x @ W.T + bias` without touching what W does not keep.

    Results have the same bits from run to run, for any number of threads and any position in the batch (a batch of one
    token may differ from a larger one in the last bits). Gradients reach x and bias; the packed weight is frozen.

    Args:
        x: `(..., in)` float32, any strides, any number of tokens.
        packed: W `(out, in)`: layout `vector` (float32 or float16 values), `int8` (x is rounded to 7 bits from two
            tokens on, one range per token), `masked` (dense on request), or a layout with a registered operator.
        bias: `(out,)` float32, or None.
        on_missing: where no kernel is able: `error`, or `dense` (unpack for this call, counted in `dispatch_report`);
            None: as the surrounding `sparsewright.on_missing` block says, `error` without one.

    Returns:
        `(..., out)` float32.

    Raises:
        KernelError: no kernel is able (the message lists each one's reasons and shows how to add one), or x or bias
            does not fit.
    """
    if _not_built_in(x, packed, on_missing):
        return _elsewhere(x, packed, bias, missing_choice(on_missing))
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


def _not_built_in(x: Tensor, packed: PackedWeight, on_missing: OnMissing | None) -> bool:
    """Whether the kernels of this package do not take the weight, or x where dense execution is wanted instead."""
    if packed.layout not in _BUILT_IN:
        return True
    if packed.layout == "vector" and packed.value_dtype not in (torch.float32, torch.float16):
        return True
    return x.dtype is not torch.float32 and packed.layout != "masked" and missing_choice(on_missing) == "dense"


def _elsewhere(x: Tensor, packed: PackedWeight, bias: Tensor | None, on_missing: OnMissing) -> Tensor:
    """By a registered operator; dense where that was asked for."""
    tokens = x.numel() // packed.shape[1]
    name = able_operator(packed, tokens)
    if name is not None:
        return run_operator(name, x, packed, bias)
    if on_missing == "dense":
        return run_dense(x, packed, bias)
    raise no_kernel(why_not(packed, tokens), packed)


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
