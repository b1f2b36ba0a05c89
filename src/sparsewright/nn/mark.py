"""`mark_`: sparse weights, activations and gradients in an unmodified model, by name.

Weights become parametrisations (dense, trainable, chosen anew on every forward) or packed parameters; outputs and
gradients become hooks. Torch's own extension points are all it uses, so every mark can be taken off again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from ..core import AbstractPattern, ModelError, require_module, require_whole
from .names import by_name
from .sparse_format import COO, DENSE, SparseFormat, format_of
from .sparse_tensor import SparseTensor, as_parameter
from .tensor_sparsifiers import AbstractTensorSparsifier

Asked = SparseFormat | AbstractTensorSparsifier | AbstractPattern | str
Rules = Mapping[str, Asked]


@final
@dataclass
class Marks:
    """What `mark_` marked; also a context manager that takes the marks off at its end.

    Attributes:
        weights, outputs, weight_gradients, output_gradients: full name -> format.
    """

    weights: dict[str, SparseFormat] = field(default_factory=dict)
    outputs: dict[str, SparseFormat] = field(default_factory=dict)
    weight_gradients: dict[str, SparseFormat] = field(default_factory=dict)
    output_gradients: dict[str, SparseFormat] = field(default_factory=dict)
    _undo: list[Callable[[], Any]] = field(default_factory=list, repr=False)

    def remove(self) -> None:
        """Take all marks off. Marked weights are again what they were, with what training did to them since."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> "Marks":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def mark_(
    model: nn.Module,
    *,
    weights: Rules | None = None,
    outputs: Rules | None = None,
    weight_gradients: Rules | None = None,
    output_gradients: Rules | None = None,
) -> Marks:
    """Make tensors of a model sparse from now on, in place.

    A name is exact, a glob (`encoder.*.fc1`) or `re:EXPRESSION` (the whole name); an exact name goes before the others,
    of which the first that matches holds. A format is a `SparseFormat`, a tensor sparsifier, or a pattern or its text.

    Args:
        model: any module.
        weights: module names (their `weight`) or parameter names -> format. With the final layout `dense` the parameter
            stays dense and trainable, and every forward sees its sparsified value; the gradient passes straight through
            to all of it, so that what was dropped can come back. With a packed layout the parameter becomes a frozen
            `SparseTensor`. A tied weight is marked wherever it is used, and stays tied.
        outputs: module names -> format of what the module returns, which must be one tensor. Gradients pass where it
            keeps.
        weight_gradients: as `weights` -> format of what each backward adds to `.grad`; final layout `dense` or `coo`.
        output_gradients: module names -> format of the gradient that enters the module's backward; `dense` or `coo`.

    Returns:
        What was marked, with `remove()`.

    Raises:
        ModelError: no rules, a name matches nothing, or a tensor cannot be marked so; the model is as it was.
        PatternError, LayoutError: a format does not fit its tensor; the model is as it was, if it is a weight.
    """
    require_module(model)
    if not (weights or outputs or weight_gradients or output_gradients):
        raise ModelError("mark_ was given no rules, so it would mark nothing. Pass weights={name: format}, say.")
    marks = Marks()
    owners = _weights(model)
    modules = dict(model.named_modules())
    try:
        for name, fmt in _resolved(weight_gradients, list(owners), "weight_gradients", weight=True).items():
            _mark_weight_gradient(marks, name, owners[name], fmt)
        for name, fmt in _resolved(weights, list(owners), "weights", weight=True).items():
            if name not in marks.weights:
                _mark_weight(marks, name, owners, fmt)
        # Before the outputs: the gradient is that of what the operator gives, in front of its sparsifiers.
        for name, fmt in _resolved(output_gradients, list(modules), "output_gradients").items():
            _mark_output_gradient(marks, name, modules[name], fmt)
        for name, fmt in _resolved(outputs, list(modules), "outputs").items():
            hook = _OutputHook(name, fmt, fmt.apply if fmt.is_traceable else _outside_the_graph(fmt))
            marks._undo.append(modules[name].register_forward_hook(hook).remove)
            marks.outputs[name] = fmt
    except BaseException:
        marks.remove()
        raise
    return marks


@final
@dataclass(frozen=True)
class _Owner:
    module: nn.Module
    attribute: str
    parameter: nn.Parameter

    @property
    def is_turned(self) -> bool:
        """Whether the parameter is `(in, out)`: transformers' Conv1D, by name, because it need not be installed."""
        kind = type(self.module)
        # A parametrised module has a class of its own, derived from the one it had.
        known = {(base.__module__, base.__name__) for base in kind.__mro__}
        return ("transformers.pytorch_utils", "Conv1D") in known


def _weights(model: nn.Module) -> dict[str, _Owner]:
    """Full name -> owner of every parameter, tied ones under each of their names."""

    def found() -> Iterator[tuple[str, _Owner]]:
        for name, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, parametrize.ParametrizationList):
                continue
            held = dict(module._parameters)
            for attribute in getattr(module, "parametrizations", {}):
                original: Any = module.parametrizations[attribute]
                held[attribute] = getattr(original, "original", None)
            for attribute, parameter in held.items():
                if parameter is not None:
                    yield f"{name}.{attribute}" if name else attribute, _Owner(module, attribute, parameter)

    return dict(found())


def _resolved(rules: Rules | None, names: list[str], what: str, weight: bool = False) -> dict[str, SparseFormat]:
    chosen = by_name(rules or {}, names, what, weight)
    return {name: format_of(asked) for name, asked in chosen.items()}


def _mark_weight(marks: Marks, name: str, owners: Mapping[str, _Owner], fmt: SparseFormat) -> None:
    owner = owners[name]
    parameter = owner.parameter
    if isinstance(parameter, SparseTensor):
        raise ModelError(f"{name} is packed already. Mark it before it is packed.")
    require_whole(parameter, name)
    tied = {other: held for other, held in owners.items() if held.parameter is parameter}
    for other, held in tied.items():
        if parametrize.is_parametrized(held.module, held.attribute):
            raise ModelError(f"{other} is parametrised already. Remove that parametrisation or mark first.")
    if fmt.final == COO:
        raise ModelError(f"{name} cannot be held as 'coo': no layer multiplies by it. Use 'dense' or a packed layout.")
    if fmt.final == DENSE:
        changed: Any = _Sparsified(fmt, owner.is_turned)
        changed(parameter.detach())  # a format that does not fit says so before anything changes
        for held in tied.values():
            parametrize.register_parametrization(held.module, held.attribute, changed)
            marks._undo.append(_parametrisation_remover(held))
    else:
        packed = _packed(name, owner, fmt)
        for held in tied.values():
            held.module._parameters[held.attribute] = packed
            marks._undo.append(_restorer(held))
    marks.weights.update(dict.fromkeys(tied, fmt))


def _packed(name: str, owner: _Owner, fmt: SparseFormat) -> Any:
    if isinstance(owner.module, nn.MultiheadAttention | NonDynamicallyQuantizableLinear):
        raise ModelError(
            f"{name} cannot be held in the layout {fmt.final!r}: nn.MultiheadAttention reads it past the layers that "
            "run packed weights. Use the final layout 'dense'."
        )
    if owner.parameter.requires_grad:
        raise ModelError(
            f"{name} requires a gradient, and a marked weight in the layout {fmt.final!r} is frozen: it would stop "
            "training unseen. Call requires_grad_(False) on it first, or use the final layout 'dense', or "
            "sparsewright.nn.PackedLinear to train the packed values."
        )
    weight = owner.parameter.detach()
    held = fmt.apply(weight.T.contiguous() if owner.is_turned else weight)
    assert isinstance(held, SparseTensor)
    return as_parameter(SparseTensor(held.packed, owner.is_turned, weight.dtype))


def _parametrisation_remover(owner: _Owner) -> Callable[[], Any]:
    return lambda: parametrize.remove_parametrizations(owner.module, owner.attribute, leave_parametrized=False)


def _restorer(owner: _Owner) -> Callable[[], Any]:
    return lambda: owner.module._parameters.__setitem__(owner.attribute, owner.parameter)


@final
class _Sparsified(nn.Module):
    """Parametrisation: the sparsified weight forward, the whole gradient backward."""

    def __init__(self, fmt: SparseFormat, turned: bool) -> None:
        super().__init__()
        self.format, self.turned = fmt, turned

    def forward(self, weight: Tensor) -> Tensor:
        """A weight of any number of dimensions is seen as the matrix `(out, in)` that its layer multiplies by."""
        dense = weight.detach()
        matrix = dense.T if self.turned else dense.flatten(1) if dense.dim() > 2 else dense
        sparse = self.format.apply(matrix)
        result = (sparse.T if self.turned else sparse).reshape(dense.shape)
        if not weight.requires_grad:
            return result
        # The difference is zero; only its gradient is not.
        return result + (weight - dense)


def _gradient_format(name: str, fmt: SparseFormat) -> None:
    if fmt.final not in (DENSE, COO):
        raise ModelError(f"The gradient of {name} can end as 'dense' or 'coo', got {fmt.final!r}: nothing adds it up.")


def _mark_weight_gradient(marks: Marks, name: str, owner: _Owner, fmt: SparseFormat) -> None:
    _gradient_format(name, fmt)
    parameter = owner.parameter
    if not parameter.requires_grad:
        raise ModelError(f"{name} gets no gradient: it does not require one. Call requires_grad_() first.")
    require_whole(parameter, name)
    values = SparseFormat(fmt.inline, fmt.temporary, fmt.external)
    turned = owner.is_turned

    def sparsify(grad: Tensor) -> Tensor:
        matrix = grad.T if turned else grad.flatten(1) if grad.dim() > 2 else grad
        sparse = values.apply(matrix)
        return (sparse.T if turned else sparse).reshape(grad.shape)

    def store(tensor: Tensor) -> None:
        if tensor.grad is not None:
            tensor.grad = tensor.grad.to_sparse()

    marks._undo.append(parameter.register_hook(sparsify).remove)
    if fmt.final == COO:
        marks._undo.append(parameter.register_post_accumulate_grad_hook(store).remove)
    marks.weight_gradients[name] = fmt


def _mark_output_gradient(marks: Marks, name: str, module: nn.Module, fmt: SparseFormat) -> None:
    _gradient_format(name, fmt)
    hook = _OutputHook(name, fmt, _gradient_changer(fmt))
    marks._undo.append(module.register_forward_hook(hook).remove)
    marks.output_gradients[name] = fmt


def _gradient_changer(fmt: SparseFormat) -> Callable[[Tensor], Tensor]:
    # One class per format: torch.compile takes no format as an argument of a Function, but one that it closes over.
    class ChangedGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.view_as(tensor)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return fmt.apply(grad)

    change: Callable[[Tensor], Tensor] = ChangedGradient.apply
    return change


def _outside_the_graph(fmt: SparseFormat) -> Callable[[Tensor], Tensor]:
    apply: Callable[[Tensor], Tensor] = torch.compiler.disable(
        fmt.apply, reason=f"packing to {fmt.final!r} gives tensors whose sizes depend on values"
    )
    return apply


@final
@dataclass(frozen=True)
class _OutputHook:
    name: str
    format: SparseFormat
    change: Callable[[Tensor], Tensor]

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"A marked module must return one tensor, {self.name!r} returns {type(output).__name__}. "
                "Mark the module inside it that makes the tensor."
            )
        return self.change(output)
