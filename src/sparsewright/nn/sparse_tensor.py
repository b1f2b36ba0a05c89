"""`SparseTensor`: a tensor subclass around a packed weight, so that unmodified modules run it.

It sits in `nn.Linear.weight` (or in the `(in, out)` weight of transformers' `Conv1D`, or, in four dimensions, in
`nn.Conv2d.weight`) as a parameter. A class-level `__torch_function__` catches `F.linear`, convolutions, `addmm` and
products, because under autograd `F.linear` would be cut into `t` and `addmm` first; `__torch_dispatch__` carries
copies, moves and views. Whatever else would need the dense values raises: nothing turns dense by itself.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..core import BundleError, KernelError, parse_pattern
from ..kernels import count_dense_run, forget_dense_runs, missing_choice, operators
from ..layouts import PackedWeight, layouts

# Filled by `products` and `handlers`; looked up on every call, so plain dicts.
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
OPERATORS: dict[Any, Callable[..., Any]] = {}

_PREFIX = "packed_"
# Names of all planes that any packed weight of this process has held.
_planes: set[str] = set()


@final
class SparseTensor(Tensor):
    """A packed weight that a module takes for its weight.

    Args:
        packed: what it holds; shape `(out, in)`.
        transposed: show it as `(in, out)`.
        dtype: the dtype that modules see, that of their activations; kept values have `packed.value_dtype`.
        view_shape: show it so, the weight of a convolution `(out, channels, *kernel)`; None: as the matrix it is.
    """

    packed: PackedWeight
    transposed: bool
    view_shape: tuple[int, ...] | None
    # Its dtype, which to ask of the tensor itself takes longer than a small kernel.
    seen_as: torch.dtype

    @staticmethod
    def __new__(
        cls,
        packed: PackedWeight,
        transposed: bool = False,
        dtype: torch.dtype = torch.float32,
        view_shape: tuple[int, ...] | None = None,
    ) -> "SparseTensor":
        out, in_ = packed.shape
        shape: tuple[int, ...] = (in_, out) if transposed else (out, in_)
        # The strides tell which memory order a dense weight would have; nothing is stored under them.
        strides: tuple[int, ...] = (1, in_) if transposed else (in_, 1)
        if view_shape is not None:
            if transposed or view_shape[0] != out or math.prod(view_shape[1:]) != in_:
                raise KernelError(
                    f"A packed weight {packed.shape} can be seen as ({out}, ...) with {in_} weights per output, got "
                    f"{tuple(view_shape)}. Pass the shape of the convolution it was packed from."
                )
            shape = tuple(view_shape)
            strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        tensor: SparseTensor = Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=dtype, device=packed.device, requires_grad=False
        )
        return tensor

    def __init__(
        self,
        packed: PackedWeight,
        transposed: bool = False,
        dtype: torch.dtype = torch.float32,
        view_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.transposed = transposed
        self.seen_as = dtype
        self.view_shape = None if view_shape is None else tuple(view_shape)
        self.hold(packed)

    def hold(self, packed: PackedWeight) -> None:
        """Take another packed weight of the same shape in place of the present one."""
        for name, tensor in packed.tensors.items():
            # torch.compile and torch.export ask for inner tensors as attributes.
            setattr(self, _PREFIX + name, tensor)
            _planes.add(_PREFIX + name)
        self.packed = packed

    def __dir__(self) -> list[str]:
        # torch.export asks the first packed weight of a model which attributes the others have, whatever their layouts.
        return [*super().__dir__(), *_planes]

    def like(
        self, packed: PackedWeight, transposed: bool | None = None, dtype: torch.dtype | None = None
    ) -> "SparseTensor":
        """Another one around `packed`, seen as this one is unless told."""
        turned = self.transposed if transposed is None else transposed
        return SparseTensor(packed, turned, dtype or self.dtype, self.view_shape)

    def dense(self) -> Tensor:
        """The dense weight in this tensor's shape and dtype, a copy: the one way to dense values."""
        weight = self.packed.unpack().to(self.dtype)
        if self.view_shape is not None:
            return weight.view(self.view_shape)
        return weight.T.contiguous() if self.transposed else weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        packed = self.packed
        return (
            f"SparseTensor({packed.pattern}, shape={tuple(self.shape)}, layout={packed.layout!r}, "
            f"values={packed.value_dtype}, size_bytes={packed.size_bytes})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseTensor":
        if id(self) in memo:
            found: SparseTensor = memo[id(self)]
            return found
        copied = self.like(copy_packed(self.packed, Tensor.clone))
        if isinstance(self, torch.nn.Parameter):
            copied = as_parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduced(self)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        packed = self.packed
        names = tuple(packed.tensors)
        seen = (self.transposed, self.dtype, self.view_shape)
        context = (packed.layout, packed.pattern, packed.shape, packed.value_dtype, names, *seen)
        # The choice does not rebuild it: torch.compile guards on all of this, and so compiles again for the other one.
        return [_PREFIX + name for name in names], (*context, missing_choice())

    def _stable_hash_for_caching(self) -> str:
        packed = self.packed
        seen = f"{self.transposed} {self.dtype} {self.view_shape} {missing_choice()}"
        return f"{packed.layout} {packed.pattern} {packed.shape} {packed.value_dtype} {seen}"

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], context: Any, size: Any, stride: Any) -> "SparseTensor":
        layout, pattern, shape, value_dtype, names, transposed, dtype, view_shape, _ = context
        tensors = {name: inner[_PREFIX + name] for name in names}
        return SparseTensor(PackedWeight(layout, pattern, shape, value_dtype, tensors), transposed, dtype, view_shape)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = FUNCTIONS.get(func)
        if handler is not None:
            return handler(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = OPERATORS.get(func)
        if handler is None:
            return _unserved(func, args, kwargs or {})
        return handler(func, *args, **(kwargs or {}))


def needs_dense(operation: str, stub: str = "") -> KernelError:
    """The error of an operation that no packed kernel serves; `stub` shows how to write one."""
    return KernelError(
        f"{operation} has no kernel for a packed weight and would need it dense. "
        "Call `.dense()` on the weight if dense is what you want, or leave this layer unpacked." + stub
    )


def _unserved(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """An operator without a handler: dense where that was asked for, counted; else the error that shows a handler."""
    if missing_choice() != "dense" or func._schema.is_mutable:
        raise needs_dense(str(func), f" To add a kernel, fill this in:\n\n{handler_stub(func)}")
    return serve_dense(func, args, kwargs)


def serve_dense(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator with every packed argument unpacked, counted."""

    def opened(item: Any) -> Any:
        if not isinstance(item, SparseTensor):
            return item
        count_dense_run(item.packed)
        return item.dense()

    dense_args, dense_kwargs = tree_map(opened, (args, dict(kwargs)))
    return func(*dense_args, **dense_kwargs)


def handler_stub(func: Any) -> str:
    """Python text of a handler of an operator: right as it is, and to be filled with something faster."""
    arguments = [argument for argument in func._schema.arguments if not argument.kwarg_only]
    keywords = [argument for argument in func._schema.arguments if argument.kwarg_only]
    names = [_as_python(argument) for argument in arguments] + ["*"] * bool(keywords) + list(map(_as_python, keywords))
    return f'''\
import torch
from sparsewright.nn import SparseTensor, implements


@implements(torch.ops.{func})
def serve({", ".join(names)}):
    """{func._schema}: the arguments as they came, SparseTensors among them (`.packed`, `.dense()`)."""
    return ...  # fill in
'''


def _as_python(argument: Any) -> str:
    return f"{argument.name}={argument.default_value!r}" if argument.has_default_value() else str(argument.name)


def copy_packed(packed: PackedWeight, change: Callable[[Tensor], Tensor]) -> PackedWeight:
    """The same packed weight with every tensor replaced by `change(tensor)`."""
    tensors = {name: change(tensor) for name, tensor in packed.tensors.items()}
    changed = PackedWeight(packed.layout, packed.pattern, packed.shape, packed.value_dtype, tensors)
    forget_dense_runs(changed)
    return changed


def as_parameter(tensor: SparseTensor, trainable: bool = False) -> SparseTensor:
    """The tensor as an `nn.Parameter`.

    Args:
        tensor: what the module is to hold.
        trainable: whether its kept values get a gradient (layout `vector`, float32 values; what cannot train stays
            frozen, see `train_packed_`); gradients flow to the inputs of its layer either way.
    """
    operators.names()  # plug-ins are read here, because torch.compile cannot read them while it traces
    forget_dense_runs(tensor.packed)
    parameter: Any = torch.nn.Parameter(tensor, requires_grad=trainable)
    held: SparseTensor = parameter
    return held


@final
class _Stored:
    """A packed weight as pickle writes it: once, whatever tensors of one file hold it, so that ties survive."""

    def __init__(self, packed: PackedWeight) -> None:
        self.packed = packed

    def __reduce__(self) -> tuple[Any, ...]:
        packed = self.packed
        stored = layouts.get(packed.layout).to_storage(packed)
        shape = (int(packed.shape[0]), int(packed.shape[1]))
        return restore_packed, (packed.layout, str(packed.pattern), shape, packed.value_dtype, dict(stored))


# By identity of the packed weight, which the value keeps alive.
_stored: "weakref.WeakValueDictionary[int, _Stored]" = weakref.WeakValueDictionary()
_restored: "weakref.WeakValueDictionary[tuple[Any, ...], SparseTensor]" = weakref.WeakValueDictionary()


def _reduced(tensor: SparseTensor) -> tuple[Any, ...]:
    """What pickle writes: two functions of ours, plain values and plain tensors."""
    packed = tensor.packed
    stored = _stored.get(id(packed))
    if stored is None:
        stored = _stored[id(packed)] = _Stored(packed)
    trainable = bool(tensor.is_leaf and tensor.requires_grad)
    seen = (tensor.transposed, tensor.dtype, isinstance(tensor, torch.nn.Parameter), trainable, tensor.view_shape)
    return restore_tensor, (stored, *seen)


def restore_packed(
    layout: str, pattern: str, shape: tuple[int, int], value_dtype: torch.dtype, stored: Mapping[str, Tensor]
) -> PackedWeight:
    """Rebuild a packed weight from its file form; the layout checks every tensor.

    Raises:
        BundleError: the parts do not belong together, or are on the meta device.
    """
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(size, int) for size in shape)):
        raise BundleError(f"A packed weight has a shape (out, in), got {shape!r}: the file is damaged. Write it again.")
    if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in dict(stored).values()):
        raise BundleError(
            "How large a packed weight is in memory stands in its index, so it cannot be read onto the meta device, "
            "which holds no data. Load it with map_location='cpu'."
        )
    return layouts.get(layout).from_storage(dict(stored), parse_pattern(pattern), shape, value_dtype)


def restore_tensor(
    stored: Any,
    transposed: bool,
    dtype: torch.dtype,
    parameter: bool,
    trainable: bool = False,
    view_shape: tuple[int, ...] | None = None,
) -> SparseTensor:
    """Rebuild a tensor around a packed weight; the same one for every name that the file has for it.

    Raises:
        BundleError: the parts do not belong together.
    """
    # `copy.copy` comes without having pickled.
    packed = stored.packed if isinstance(stored, _Stored) else stored
    if not isinstance(packed, PackedWeight):
        raise BundleError(f"A packed tensor holds a packed weight, got {type(packed).__name__}: the file is damaged.")
    shape = packed.shape
    whole = view_shape is None or (isinstance(view_shape, tuple) and all(isinstance(size, int) for size in view_shape))
    if not whole or (
        view_shape is not None and (view_shape[:1] != shape[:1] or math.prod(view_shape) != math.prod(shape))
    ):
        raise BundleError(
            f"A packed weight {shape} cannot be seen as {view_shape!r}: the file is damaged. Write it again."
        )
    key = (id(packed), bool(transposed), dtype, bool(parameter), bool(trainable), view_shape)
    found = None if packed is not stored else _restored.get(key)
    # It may hold another weight by now.
    if found is not None and found.packed is packed:
        return found
    tensor = SparseTensor(packed, bool(transposed) and view_shape is None, dtype, view_shape)
    made = as_parameter(tensor, trainable) if parameter else tensor
    _restored[key] = made
    return made


def restore(
    layout: str,
    pattern: str,
    shape: tuple[int, int],
    value_dtype: torch.dtype,
    stored: Mapping[str, Tensor],
    transposed: bool,
    dtype: torch.dtype,
    parameter: bool,
    trainable: bool = False,
    view_shape: tuple[int, ...] | None = None,
) -> SparseTensor:
    """Both at once, as files name it that were written before ties were kept.

    Raises:
        BundleError: the parts do not belong together.
    """
    packed = restore_packed(layout, pattern, shape, value_dtype, stored)
    return restore_tensor(packed, transposed, dtype, parameter, trainable, view_shape)


def allow_loading() -> None:
    """Let `torch.load(weights_only=True)` read packed weights in this process.

    Only functions of ours join the allow-list; they check all they are given.
    """
    torch.serialization.add_safe_globals([restore, restore_packed, restore_tensor])
