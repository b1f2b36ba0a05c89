"""Packed weights that train: their kept values are the parameters, their pattern stays by construction.

`kept_values` leads autograd from a `SparseTensor` to the values that the kernels multiply, `from_kept_values` leads the
gradient back: `.grad` is a `SparseTensor` with the same places. Both are operators, so that torch.compile sees them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core import KernelError, ModelError, require_module
from ..kernels.flops import tell_flop_counters
from ..kernels.sparse_linear.autocast import as_float32
from ..kernels.sparse_linear.dispatch import why_not
from ..kernels.sparse_linear.library import library
from ..kernels.sparse_linear.no_kernel import no_kernel
from ..kernels.sparse_linear.op import check_call
from ..kernels.sparse_linear.operand import kept_per_8
from ..kernels.sparse_linear.operators import able_operator, run_operator
from ..kernels.sparse_linear.transforms import check_eager, refuse_nested
from ..layouts import PackedWeight
from .sparse_tensor import FUNCTIONS, OPERATORS, SparseTensor

# How many an operator is asked about where nobody knows yet: more than one.
_TOKENS = 2

library.define("kept_values(Tensor weight) -> Tensor")
library.define("from_kept_values(Tensor values, Tensor weight) -> Tensor")


def train_packed_(model: nn.Module, trainable: bool = True) -> list[str]:
    """Let the packed weights of a model train, in place; their optimizer sees them as any other parameter.

    Args:
        model: holds packed weights (`pack_`, `load`); dense parameters are left alone.
        trainable: False freezes them again.

    Returns:
        Names of the packed parameters, each once.

    Raises:
        ModelError: there is none, or one cannot train (each one's reason); nothing has been changed then.
    """
    require_module(model)
    parameters: Iterable[tuple[str, Any]] = model.named_parameters()
    found = {name: parameter for name, parameter in parameters if isinstance(parameter, SparseTensor)}
    if not found:
        raise ModelError("The model has no packed weight to train. Run pack_ on it, or train the masked model.")
    against = {name: why_not_trainable(parameter) for name, parameter in found.items() if trainable}
    reasons = [f"{name}: {reason}" for name, reason in against.items() if reason]
    if reasons:
        raise ModelError(f"These packed weights cannot train: {'; '.join(reasons)}.")
    for parameter in found.values():
        parameter.requires_grad_(trainable)
    return list(found)


def why_not_trainable(tensor: SparseTensor) -> str:
    """Why a packed weight cannot train, with what to do; empty if it can."""
    packed = tensor.packed
    if tensor.view_shape is not None:
        return "there is no gradient of a convolution's values; train it masked and pack it afterwards"
    if packed.layout != "vector":
        reason = why_not_by_operator(packed)
        if reason:
            return reason
    if packed.value_dtype != torch.float32:
        return f"packed weights train in float32, it has {packed.value_dtype} values; pack it with float32 values"
    if tensor.dtype != torch.float32:
        return f"packed weights train in float32, it is seen as {tensor.dtype}; call .float() on the model"
    if packed.layout == "vector" and packed.device.type not in ("cpu", "meta"):
        return f"the gradient kernels run on the CPU, it is on {packed.device}; move it there"
    return ""


def _requires_grad(tensor: SparseTensor, wanted: bool = True) -> SparseTensor:
    """Let it train or freeze it, as torch does; what cannot train stays frozen.

    `load_state_dict(assign=True)` and `model.requires_grad_()` ask this of every parameter alike: it is no wish to
    train an int8 weight, which would then refuse every forward. `train_packed_` tells who cannot, and why.
    """
    able = bool(wanted) and not why_not_trainable(tensor)
    with torch._C.DisableTorchFunctionSubclass():
        tensor.requires_grad_(able)
    return tensor


FUNCTIONS[Tensor.requires_grad_] = _requires_grad
FUNCTIONS[Tensor.requires_grad.__set__] = _requires_grad  # type: ignore[attr-defined]


def why_not_by_operator(packed: PackedWeight) -> str:
    """The same for a layout that a registered operator may serve: `values` are then all that trains."""
    if able_operator(packed, _TOKENS) is None:
        return f"the layout {packed.layout!r} has no gradient of its values; pack it in the layout 'vector'"
    floats = [name for name, tensor in packed.tensors.items() if tensor.is_floating_point()]
    if floats != ["values"]:
        return (
            f"the layout {packed.layout!r} keeps {', '.join(floats) or 'no floating-point tensor'} where one tensor "
            "'values' would be a weight's parameter; train it in sparsewright.nn.PackedLinear, which names several"
        )
    return ""


def train_product(x: Tensor, weight: SparseTensor, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` for a packed weight that requires a gradient.

    Raises:
        KernelError: the weight cannot train, or x or bias does not fit.
    """
    reason = why_not_trainable(weight)
    if reason:
        raise KernelError(f"This packed weight requires a gradient but cannot train: {reason}, or freeze it.")
    if x.is_nested:
        raise refuse_nested("Sparse linear")
    packed = weight.packed
    out, in_ = packed.shape
    if packed.layout != "vector":
        return _by_operator(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        x, bias = as_float32(x), as_float32(bias)
    check_call(x, in_, out, bias)
    if not torch.compiler.is_compiling():
        check_eager(x, packed, bias)
        tell_flop_counters()
    values = torch.ops.sparsewright.kept_values(weight)
    index, pointers = packed.tensors["index"], packed.tensors["pointers"]
    y: Tensor = torch.ops.sparsewright.linear(x, values, index, pointers, bias, out, kept_per_8(packed.pattern))
    return y


def _by_operator(x: Tensor, weight: SparseTensor, bias: Tensor | None) -> Tensor:
    """The same by a registered operator, which differentiates in the values."""
    packed = weight.packed
    if not torch.compiler.is_compiling():
        check_eager(x, packed, bias)
    name = able_operator(packed, x.numel() // packed.shape[1])
    if name is None:
        raise no_kernel(why_not(packed, x.numel() // packed.shape[1]), packed)
    held = with_values(packed, torch.ops.sparsewright.kept_values(weight))
    if not torch.is_autocast_enabled("cpu"):
        for given, tensor in (("x", x), ("bias", bias)):
            if tensor is not None and tensor.dtype != torch.float32:
                raise KernelError(f"Packed weights train in float32, got {given} of {tensor.dtype}. Cast it.")
        return run_operator(name, x, held, bias)
    with torch.autocast("cpu", enabled=False):
        y = run_operator(name, as_float32(x), held, as_float32(bias))
    return y.to(torch.get_autocast_dtype("cpu"))


def with_values(packed: PackedWeight, values: Tensor) -> PackedWeight:
    """The same places with other values."""
    tensors = {**packed.tensors, "values": values}
    return PackedWeight(packed.layout, packed.pattern, packed.shape, packed.value_dtype, tensors)


def _kept_values(func: Any, weight: SparseTensor) -> Tensor:
    # An alias, because autograd marks what it gets: the tensor inside must stay a plain one.
    return weight.packed.tensors["values"].detach()


def _from_kept_values(func: Any, values: Tensor, weight: SparseTensor) -> SparseTensor:
    return weight.like(with_values(weight.packed, values.detach()))


OPERATORS[torch.ops.sparsewright.kept_values.default] = _kept_values
OPERATORS[torch.ops.sparsewright.from_kept_values.default] = _from_kept_values


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[-1])


def _kept_values_backward(ctx: Any, grad: Tensor) -> Tensor:
    of_weight: Tensor = torch.ops.sparsewright.from_kept_values(grad, *ctx.saved_tensors)
    return of_weight


def _from_kept_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.sparsewright.kept_values(grad), None


torch.library.register_autograd(
    "sparsewright::kept_values", _kept_values_backward, setup_context=_keep_weight, lib=library
)
torch.library.register_autograd(
    "sparsewright::from_kept_values", _from_kept_values_backward, setup_context=_keep_weight, lib=library
)
