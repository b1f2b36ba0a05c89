"""`linear`: the public door. A few microseconds in eager inference, the registered operator everywhere else.

A profiler or a dispatch mode that is on counts as elsewhere, so that it sees the call.
"""

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.nn import Parameter

from ...core import KernelError
from ...layouts import PackedWeight
from ..flops import tell_flop_counters
from .activations import CODES, Activation, apply_activation, check_activation
from .autocast import as_float32
from .candidates import CANDIDATES
from .dispatch import require_packed, why_not
from .missing import OnMissing, missing_choice, run_dense
from .no_kernel import no_kernel
from .op import check_call
from .operand import native_operand, quick_calls
from .operators import able_operator, run_operator
from .registered import masked_dense, registered_linear
from .transforms import check_eager, in_forward_ad, refuse_nested

_BUILT_IN = frozenset(layout for candidate in CANDIDATES for layout in candidate.layouts)


def linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    *,
    on_missing: OnMissing | None = None,
) -> Tensor:
    """`activation(x @ W.T + bias)` without touching what W does not keep.

    Results have the same bits from run to run, for any number of threads and any position in the batch. A batch of one
    token may differ from a larger one in the last bits, and in the layout `int8` by the rounding of x, which one token
    is spared; so may one of up to 32 tokens from a larger one where the weight is `2:4t` (AVX-512).
    Gradients reach x and bias; the packed weight is frozen. With gradients, activations are torch's own,
    which may differ in the last bits. Where x is infinite or NaN, y may be NaN also in rows that do not keep that
    column.

    Args:
        x: `(..., in)` float32, any strides, any number of tokens; also float16 or bfloat16 on a CUDA device and under
            `torch.autocast("cpu")`.
        packed: W `(out, in)` on the device of x: layout `vector` (float32 or float16 values, on CUDA also bfloat16),
            `nmg` (CPU, the same), `int8_weights` (CPU; bytes, x as it is), `int8` (CPU; x is rounded to 7 bits from two
            tokens on, one range per token), `semi_structured` (CUDA; x of the values' dtype), or `masked` (dense on
            request), or a layout with a registered operator.
        bias: `(out,)` float32, on a CUDA device any of the dtypes of x, or None.
        activation: `relu`, `gelu` (its exact form) or `gelu_tanh`, applied to y while it is in the nearest cache.
        on_missing: where no kernel is able: `error`, or `dense` (unpack for this call, counted in `dispatch_report`);
            None: as the surrounding `sparsewright.on_missing` block says, `error` without one.

    Returns:
        `(..., out)` in the dtype of x; under autocast computed in float32 and then rounded to autocast's dtype.

    Raises:
        KernelError: no kernel is able (the message lists each one's reasons and shows how to add one), or x or bias
            does not fit.
    """
    if on_missing is not None and on_missing not in ("error", "dense"):
        raise KernelError(f"on_missing is 'error' or 'dense', got {on_missing!r}.")
    compiling = torch.compiler.is_compiling()
    watched = not compiling and _profiler_enabled()
    if not (compiling or watched or in_forward_ad()) and (activation is None or type(activation) is str):
        quick, code = quick_calls.get(id(packed)), CODES.get(activation)
        if quick is not None and code is not None:
            quick_y = quick(x, bias, code)
            if quick_y is not None:
                return quick_y
    _check_types(x, packed, bias)
    if not compiling:
        tell_flop_counters()
    if activation is not None:
        check_activation(activation)
    if torch.is_autocast_enabled("cpu") and packed.layout != "masked":
        with torch.autocast("cpu", enabled=False):
            y = linear(as_float32(x), packed, as_float32(bias), activation, on_missing=on_missing)
        return y.to(torch.get_autocast_dtype("cpu"))
    if _not_built_in(x, packed, on_missing):
        return apply_activation(_elsewhere(x, packed, bias, missing_choice(on_missing)), activation)
    if packed.layout == "masked":
        return apply_activation(masked_dense(x, packed, bias), activation)
    if not compiling:
        check_eager(x, packed, bias)
    if compiling or watched or _needs_operator(x, bias):
        return apply_activation(registered_linear(x, packed, bias), activation)
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


def _check_types(x: object, packed: object, bias: object) -> None:
    require_packed(packed)
    assert isinstance(packed, PackedWeight)
    for name, given in (("x", x), ("bias", bias)):
        if not isinstance(given, Tensor) and not (name == "bias" and given is None):
            raise KernelError(f"Sparse linear takes tensors, got {name} of {type(given).__name__}. Convert it first.")
    if isinstance(x, Tensor) and x.is_nested and packed.layout != "masked":
        raise refuse_nested("Sparse linear")


def _not_built_in(x: Tensor, packed: PackedWeight, on_missing: OnMissing | None) -> bool:
    """Whether the kernels of this package do not take the weight, or x where dense execution is wanted instead."""
    if packed.layout not in _BUILT_IN or (packed.value_dtype is not torch.float32 and _too_narrow(packed)):
        return True
    narrow = x.dtype is not torch.float32 and x.is_cpu and packed.layout != "masked"
    return narrow and missing_choice(on_missing) == "dense"


def _too_narrow(packed: PackedWeight) -> bool:
    """Whether only kernels of other devices multiply these values."""
    if packed.layout not in ("vector", "nmg", "semi_structured") or packed.device.type != "cpu":
        return False
    return packed.layout == "semi_structured" or packed.value_dtype is not torch.float16


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
    tracing, dispatch modes, functorch, subclasses (fake tensors among them), other devices and memory formats,
    shapes without data, pending negations."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    if bias is not None and type(bias) not in (Tensor, Parameter):
        return True
    if type(x) not in (Tensor, Parameter) or not x.is_cpu or x.is_neg() or (bias is not None and bias.is_neg()):
        return True
    return (
        x.layout is not torch.strided
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
