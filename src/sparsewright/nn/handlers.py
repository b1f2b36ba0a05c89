"""What a packed weight does under torch's functions and operators: products, copies, moves, turns."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import KernelError
from ..layouts import PackedWeight
from .arithmetic import same_places
from .lower_precision import forget_widened
from .lower_precision import multiply as multiply_frozen
from .packed_input import packed_input
from .sparse_tensor import FUNCTIONS, OPERATORS, SparseTensor, copy_packed, needs_dense
from .trainable import train_product, why_not_trainable

aten = torch.ops.aten

# Kept values may be stored so; activations are what the kernels take.
_SEEN_AS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


H = TypeVar("H", bound=Callable[..., Any])


def _serves(table: dict[Any, Callable[..., Any]], *names: Any) -> Callable[[H], H]:
    def join(handler: H) -> H:
        for name in names:
            table[name] = handler
        return handler

    return join


def multiply(x: Tensor, weight: SparseTensor, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias`; autograd reaches the weight where it trains."""
    if torch.is_grad_enabled() and weight.requires_grad:
        return train_product(x, weight, bias)
    return multiply_frozen(x, weight, bias)


@_serves(FUNCTIONS, F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a packed weight, or with a packed matrix as its input."""
    if type(input) is SparseTensor and not input.transposed and type(weight) is not SparseTensor:
        return packed_input(input, weight, bias)
    if type(weight) is not SparseTensor or weight.transposed or weight.view_shape or type(input) is SparseTensor:
        raise needs_dense("F.linear with a packed tensor elsewhere than as the (out, in) weight")
    return multiply(input, weight, bias)


def _product(x: Any, weight: Any, bias: Tensor | None, operation: str) -> Tensor:
    """`x @ weight (+ bias)` for a weight seen as `(in, out)`."""
    if _is_convolution(x) or _is_convolution(weight):
        raise needs_dense(f"{operation} with the packed weight of a convolution")
    if type(weight) is SparseTensor and weight.transposed and type(x) is not SparseTensor:
        return multiply(x, weight, bias)
    if type(x) is SparseTensor and not x.transposed and type(weight) is not SparseTensor and weight.dim() == 2:
        result = multiply(weight.T, x, None).T
        return result if bias is None else result + bias
    raise needs_dense(f"{operation} with a packed tensor as {_sides(x, weight)}")


def _is_convolution(tensor: Any) -> bool:
    return type(tensor) is SparseTensor and tensor.view_shape is not None


def _sides(x: Any, weight: Any) -> str:
    if type(x) is SparseTensor and type(weight) is SparseTensor:
        return "both factors"
    return "the first factor" if type(x) is SparseTensor else "the second factor seen as (out, in)"


@_serves(FUNCTIONS, torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
def matmul(input: Any, other: Any) -> Tensor:
    """`x @ weight.T` with a packed weight, or `weight @ x`."""
    return _product(input, other, None, "matmul")


@_serves(FUNCTIONS, Tensor.__rmatmul__)
def rmatmul(other: Any, input: Any) -> Tensor:
    """`x @ weight` as Python calls it on the weight."""
    return _product(input, other, None, "matmul")


@_serves(FUNCTIONS, torch.addmm, Tensor.addmm)
def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`beta * input + alpha * (mat1 @ mat2)` with a packed weight."""
    if beta == 1 and alpha == 1 and input.dim() == 1:
        return _product(mat1, mat2, input, "addmm")
    result: Tensor = beta * input + alpha * _product(mat1, mat2, None, "addmm")
    return result


@_serves(FUNCTIONS, Tensor.to_dense)
def _to_dense(tensor: SparseTensor, dtype: torch.dtype | None = None, *, masked_grad: bool | None = None) -> Tensor:
    # Torch's own name; to torch this is an ordinary tensor, which would be given back as it is.
    return tensor.dense() if dtype is None else tensor.dense().to(dtype)


@_serves(FUNCTIONS, Tensor.share_memory_)
def share_memory(tensor: SparseTensor) -> SparseTensor:
    """Hold a copy in shared memory; the tensor's own storage is empty and must not be touched."""
    # A copy, because kernels may know the present tensors by their address.
    tensor.hold(copy_packed(tensor.packed, lambda inner: inner.clone().share_memory_()))
    return tensor


@_serves(FUNCTIONS, Tensor.data.__set__)  # type: ignore[attr-defined]
def set_data(tensor: Any, value: Any) -> None:
    """`tensor.data = value`: take over another packed weight of the same shape."""
    if type(tensor) is not SparseTensor or type(value) is not SparseTensor:
        raise needs_dense("Assigning to .data between packed and dense tensors")
    if (tensor.shape, tensor.dtype, tensor.transposed) != (value.shape, value.dtype, value.transposed):
        raise KernelError(
            f"A packed weight takes over one of its own shape and dtype, {tuple(tensor.shape)} {tensor.dtype}, got "
            f"{tuple(value.shape)} {value.dtype}. Replace the parameter instead."
        )
    tensor.hold(value.packed)


@_serves(FUNCTIONS, Tensor.is_shared)
def is_shared(tensor: SparseTensor) -> bool:
    """Whether the packed tensors are in shared memory."""
    return all(inner.is_shared() for inner in tensor.packed.tensors.values())


def _must_not_train(func: Any, *weights: Any) -> None:
    # Below autograd, which has noted a dense product and would hand a dense gradient to the weight.
    if torch.is_grad_enabled() and any(type(w) is SparseTensor and w.requires_grad for w in weights):
        raise KernelError(
            f"{func} reached a packed weight in training past F.linear, so that its gradient would be dense. "
            "Call F.linear, addmm or matmul from Python and outside of torch.func, or freeze the weight."
        )


@_serves(OPERATORS, aten.mm.default, aten.matmul.default)
def _aten_mm(func: Any, x: Any, weight: Any) -> Tensor:
    _must_not_train(func, x, weight)
    return _product(x, weight, None, str(func))


@_serves(OPERATORS, aten.addmm.default)
def _aten_addmm(func: Any, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    _must_not_train(func, x, weight)
    return addmm(bias, x, weight, beta=beta, alpha=alpha)


@_serves(OPERATORS, aten.linear.default)
def _aten_linear(func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    _must_not_train(func, weight)
    return linear(input, weight, bias)


@_serves(OPERATORS, aten.detach.default, aten.alias.default, aten.lift_fresh.default)
def _same(func: Any, tensor: SparseTensor) -> SparseTensor:
    same: SparseTensor = tensor.like(tensor.packed)
    return same


@_serves(OPERATORS, aten.clone.default)
def _clone(func: Any, tensor: SparseTensor, *, memory_format: Any = None) -> SparseTensor:
    return tensor.like(copy_packed(tensor.packed, Tensor.clone))


@_serves(OPERATORS, aten.t.default, aten.numpy_T.default)
def _turn(func: Any, tensor: SparseTensor) -> SparseTensor:
    if _is_convolution(tensor):
        raise needs_dense(f"{func} on the packed weight of a convolution")
    return tensor.like(tensor.packed, transposed=not tensor.transposed)


@_serves(OPERATORS, aten.transpose.int)
def _transpose(func: Any, tensor: SparseTensor, first: int, second: int) -> SparseTensor:
    dims = tensor.dim()
    return _same(func, tensor) if first % dims == second % dims else _turn(func, tensor)


@_serves(OPERATORS, aten.permute.default)
def _permute(func: Any, tensor: SparseTensor, order: Sequence[int]) -> SparseTensor:
    dims = tensor.dim()
    stays = [place % dims for place in order] == [*range(dims)]
    return _same(func, tensor) if stays else _turn(func, tensor)


@_serves(OPERATORS, aten._to_copy.default)
def _to_copy(
    func: Any,
    tensor: SparseTensor,
    *,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> SparseTensor:
    """Move, and see as another dtype. 16-bit dtypes store the values so, unless they are int8; float32 leaves float16
    values, which the kernels read, and widens bfloat16 ones, which they do not."""
    packed = tensor.packed
    if dtype is not None and dtype not in _SEEN_AS:
        raise KernelError(
            f"A packed weight can be seen as float32, float16, bfloat16 or float64, not as {dtype}. "
            "Pack again with another value dtype instead."
        )
    if dtype in (torch.float16, torch.bfloat16) and packed.value_dtype not in (dtype, torch.int8):
        packed = _with_values(packed, dtype)
    if dtype in (torch.float32, torch.float64) and packed.value_dtype == torch.bfloat16:
        packed = _with_values(packed, torch.float32)
    moved = packed if device is None else copy_packed(packed, lambda inner: inner.to(device))
    # `.to(copy=True)` and deep moves promise new memory.
    fresh = copy_packed(moved, Tensor.clone) if moved is tensor.packed else moved
    changed = tensor.like(fresh, dtype=dtype)
    if tensor.is_leaf and tensor.requires_grad and dtype not in (None, tensor.dtype) and why_not_trainable(changed):
        warnings.warn(
            f"A packed weight that trained is frozen from now on: {why_not_trainable(changed)}.", stacklevel=2
        )
    return changed


def _with_values(packed: PackedWeight, dtype: torch.dtype) -> PackedWeight:
    changed = copy_packed(packed, lambda inner: inner.to(dtype) if inner.is_floating_point() else inner)
    return replace(changed, value_dtype=dtype)


@_serves(OPERATORS, aten.copy_.default)
def _copy(func: Any, target: Any, source: Any, non_blocking: bool = False) -> Any:
    """Take over another packed weight; from or to a dense tensor would be a conversion nobody asked for."""
    if type(target) is not SparseTensor or type(source) is not SparseTensor:
        raise KernelError(
            "A packed weight can only be overwritten by a packed weight, and a dense one only by a dense one. "
            "Load dense weights before packing, or assign the packed weight to the module."
        )
    if target.shape != source.shape or target.transposed != source.transposed:
        raise KernelError(
            f"The packed weight has the shape {tuple(target.shape)}, got {tuple(source.shape)}. "
            "Check the model's configuration."
        )
    ours, theirs = target.packed, source.packed
    if ours.value_dtype == theirs.value_dtype and target.device == source.device and same_places(ours, theirs):
        # In place, because optimizers, shared memory and other views hold on to the values.
        ours.tensors["values"].copy_(theirs.tensors["values"])
        forget_widened(ours)
        return target
    target.hold(copy_packed(theirs, lambda inner: inner.detach().clone().to(target.device)))
    return target


@_serves(OPERATORS, aten.equal.default)
def _equal(func: Any, first: Any, second: Any) -> bool:
    if type(first) is not SparseTensor or type(second) is not SparseTensor or first.shape != second.shape:
        raise needs_dense(str(func))
    ours, theirs = first.packed.tensors, second.packed.tensors
    same = first.packed.layout == second.packed.layout and ours.keys() == theirs.keys()
    return same and all(
        ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name]) for name in ours
    )
