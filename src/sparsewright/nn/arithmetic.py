"""What optimizers, gradient clipping and accumulation do to packed weights, their gradients and their states.

Everything happens to the kept values: what the pattern removed is zero before and after. Results without a name of
their own (`w + 1`) would have to be dense, so they raise; steps in place (`v.add_(eps)`) move kept values only.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import KernelError
from ..layouts import PackedWeight
from .lower_precision import forget_widened
from .sparse_tensor import OPERATORS, SparseTensor, copy_packed, needs_dense
from .trainable import why_not_by_operator, with_values

aten = torch.ops.aten

# Zero stays zero if every tensor is packed alike.
_PACKED_ONLY = ("add", "sub", "lerp", "maximum", "minimum", "neg", "abs", "sign", "sqrt", "addcmul")
# Zero stays zero under one number.
_SCALED = ("mul", "div")
_IN_PLACE = (
    "add_",
    "sub_",
    "mul_",
    "div_",
    "lerp_",
    "addcmul_",
    "addcdiv_",
    "neg_",
    "abs_",
    "sqrt_",
    "zero_",
    "clamp_",
)
_LISTS = (
    *("_foreach_add", "_foreach_sub", "_foreach_mul", "_foreach_div", "_foreach_neg", "_foreach_sqrt", "_foreach_abs"),
    *("_foreach_lerp", "_foreach_addcmul", "_foreach_maximum", "_foreach_sign", "_foreach_norm"),
)
_LISTS_IN_PLACE = (
    *("_foreach_add_", "_foreach_sub_", "_foreach_mul_", "_foreach_div_", "_foreach_neg_", "_foreach_sqrt_"),
    *("_foreach_lerp_", "_foreach_addcmul_", "_foreach_addcdiv_", "_foreach_maximum_", "_foreach_zero_"),
    *("_foreach_copy_", "_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"),
    "_amp_foreach_non_finite_check_and_unscale_",
)

# A packed weight and one that was seen to keep the same places.
_alike: "weakref.WeakKeyDictionary[PackedWeight, weakref.ref[PackedWeight]]" = weakref.WeakKeyDictionary()


def same_places(one: PackedWeight, other: PackedWeight) -> bool:
    """Whether two packed weights keep the same places, so that their values correspond."""
    if one is other:
        return True
    seen = _alike.get(one)
    if seen is not None and seen() is other:
        return True
    ours, theirs = one.tensors, other.tensors
    if one.layout != other.layout or one.shape != other.shape or ours.keys() != theirs.keys():
        return False
    if one.layout != "vector" and why_not_by_operator(one):
        return False
    if ours["values"].shape != theirs["values"].shape:
        return False
    pairs = [(ours[name], theirs[name]) for name in ours if name != "values"]
    # Tracers bring tensors without content; what they trace was checked when it was made.
    if not all(a is b or type(a) is not Tensor or type(b) is not Tensor or torch.equal(a, b) for a, b in pairs):
        return False
    _alike[one] = weakref.ref(other)
    return True


def _values(operand: Any, first: SparseTensor, func: Any) -> Any:
    """The values of a packed operand that keeps the places of `first`; numbers as they are."""
    if type(operand) is SparseTensor:
        if not same_places(first.packed, operand.packed) or first.transposed != operand.transposed:
            raise KernelError(f"{func} takes packed tensors that keep the same places; these two differ.")
        return operand.packed.tensors["values"]
    if isinstance(operand, Tensor) and operand.numel() != 1:
        raise needs_dense(f"{func} with a packed and a dense tensor")
    return operand


def _first(operands: Sequence[Any], func: Any) -> SparseTensor:
    for operand in operands:
        if type(operand) is SparseTensor:
            return operand
    raise needs_dense(str(func))


def _packed_only(func: Any, *args: Any, **kwargs: Any) -> SparseTensor:
    first = _first(args, func)
    tensors = args if func in _TAKES_TENSORS_ONLY else args[: sum(isinstance(a, Tensor) for a in args)]
    if any(type(tensor) is not SparseTensor for tensor in tensors):
        raise needs_dense(f"{func} with a packed tensor and what is not packed")
    return first.like(with_values(first.packed, func(*(_values(a, first, func) for a in args), **kwargs)))


def _scaled(func: Any, *args: Any, **kwargs: Any) -> SparseTensor:
    first = _first(args, func)
    if func in _QUOTIENTS and type(args[1]) is SparseTensor:
        raise needs_dense(f"{func} by a packed tensor")
    return first.like(with_values(first.packed, func(*(_values(a, first, func) for a in args), **kwargs)))


def _maximum_out(func: Any, one: Any, other: Any, *, out: Any) -> Any:
    """How AMSGrad keeps its largest second moments."""
    if any(type(tensor) is not SparseTensor for tensor in (one, other, out)):
        raise needs_dense(f"{func} with a packed tensor and what is not packed")
    func(_values(one, out, func), _values(other, out, func), out=_values(out, out, func))
    return out


def _in_place(func: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
    if type(target) is not SparseTensor:
        raise needs_dense(f"{func} into a dense tensor")
    func(*(_values(a, target, func) for a in (target, *args)), **kwargs)
    forget_widened(target.packed)
    return target


def _lists(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator over lists of tensors: position by position, packed ones through their values."""
    lists = [arg for arg in (*args, *kwargs.values()) if _is_list(arg)]
    firsts = [_first_or_none(entries) for entries in _columns(lists)]

    def inner(arg: Any) -> Any:
        if not _is_list(arg):
            return arg
        return [a if f is None else _values(a, f, func) for a, f in zip(arg, firsts, strict=False)]

    result = func(*(inner(arg) for arg in args), **{name: inner(arg) for name, arg in kwargs.items()})
    if result is None:
        for first in firsts:
            if first is not None:
                forget_widened(first.packed)
    if result is None or func in _NORMS:
        return result
    return [
        value if first is None else first.like(with_values(first.packed, value))
        for value, first in zip(result, firsts, strict=True)
    ]


def _is_list(arg: Any) -> bool:
    return isinstance(arg, (list, tuple))


def _columns(lists: list[Sequence[Any]]) -> Iterator[list[Any]]:
    for place in range(max(map(len, lists))):
        yield [entries[place] for entries in lists if place < len(entries)]


def _first_or_none(operands: Sequence[Any]) -> SparseTensor | None:
    return next((operand for operand in operands if type(operand) is SparseTensor), None)


def _places(
    func: Any, tensor: SparseTensor, options: dict[str, Any], move: Callable[[Tensor, Any], Tensor]
) -> PackedWeight:
    """The weight, every plane moved to the device that the options name if they do; another dtype they may not name."""
    if options.get("dtype") not in (None, tensor.dtype):
        raise needs_dense(f"{func} in another dtype")
    packed, device = tensor.packed, options.get("device")
    if device is None or torch.device(device).type == packed.device.type:
        return packed
    return copy_packed(packed, lambda plane: move(plane, device))


def _zeros_like(func: Any, tensor: SparseTensor, **options: Any) -> SparseTensor:
    """Zeros at the same places: the fresh state of an optimizer."""

    def move(plane: Tensor, device: Any) -> Tensor:
        if plane.device.type == "meta":
            raise needs_dense(f"{func} of a weight on the meta device, whose places are not known,")
        return plane.to(device)

    packed = _places(func, tensor, options, move)
    return tensor.like(with_values(packed, torch.zeros_like(packed.tensors["values"])))


def _empty_like(func: Any, tensor: SparseTensor, **options: Any) -> SparseTensor:
    """Room for values at the same places; on another device room for all of it (`Module.to_empty`)."""
    # Kernels look at the places before they use them, so that nothing is read by what happens to stand there.
    packed = _places(func, tensor, options, lambda plane, device: torch.empty_like(plane, device=device))
    return tensor.like(with_values(packed, torch.empty_like(packed.tensors["values"])))


def _full_like(func: Any, tensor: SparseTensor, fill_value: float, **options: Any) -> SparseTensor:
    """Zeros again; any other number would fill what is not kept."""
    if fill_value != 0:
        raise needs_dense(f"{func} with {fill_value}")
    return _zeros_like(func, tensor, **options)


def _norm(func: Any, tensor: SparseTensor, ord: float = 2, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """A norm over all entries: zeros add nothing."""
    if dim is not None or ord < 0:
        raise needs_dense(f"{func} along dimensions or of a negative order")
    norm: Tensor = func(tensor.packed.tensors["values"], ord, None, *args, **kwargs)
    return norm


def _overloads(names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            if "out" not in overload:
                yield getattr(packet, overload)


def _join(names: Sequence[str], handler: Callable[..., Any]) -> frozenset[Any]:
    joined = frozenset(_overloads(names))
    for func in joined:
        OPERATORS.setdefault(func, handler)
    return joined


_join(_PACKED_ONLY, _packed_only)
_TAKES_TENSORS_ONLY = frozenset(_overloads(("add", "sub", "maximum", "minimum")))
_join(_SCALED, _scaled)
_QUOTIENTS = frozenset(_overloads(("div",)))
_join(_IN_PLACE, _in_place)
_join((*_LISTS, *_LISTS_IN_PLACE), _lists)
_NORMS = frozenset(_overloads(("_foreach_norm",)))
OPERATORS[aten.maximum.out] = _maximum_out
OPERATORS[aten.zeros_like.default] = _zeros_like
OPERATORS[aten.empty_like.default] = _empty_like
OPERATORS[aten.full_like.default] = _full_like
OPERATORS[aten.linalg_vector_norm.default] = _norm
