"""Registered operators: sparse linear for a layout of your own, forward and backward in plain torch.

A class that derives from `AbstractLinear` and is registered serves every packed weight of its layout that no built-in
kernel takes. Nothing is opaque: torch.compile and torch.export trace through it, so `fullgraph=True` holds as long as
the forward itself can be traced.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...core import AbstractPattern, KernelError, Registry
from ...layouts import PackedWeight
from .batching import run_batched
from .candidates import AbstractCandidate
from .transforms import refuse_forward_mode

Gradients = tuple[Tensor, Mapping[str, Tensor]]


class AbstractLinear(AbstractCandidate):
    """`y = x W^T + b` for one layout.

    Without a `backward`, torch differentiates `forward`. With one, gradients of x and of the packed tensors are what it
    returns; the gradient of the bias is given.

    Attributes:
        layout: registered name of the layout that it reads.
        name: how reports call it; set by `register_operator`.
    """

    layout: ClassVar[str]

    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        """Reasons why it cannot multiply this weight; another layout is the only one unless told."""
        return self._why_not_layout(packed)

    @abstractmethod
    def forward(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        """The product.

        Args:
            x: `(..., in)`, at least one dimension, any strides and dtype: refuse in a KernelError what does not suit.
            packed: W `(out, in)`; its tensors are `packed.tensors[name]`.
            bias: `(out,)` or None.

        Returns:
            `(..., out)`.
        """

    def backward(self, grad: Tensor, x: Tensor, packed: PackedWeight) -> Gradients:
        """Gradients of x and of the packed tensors.

        Args:
            grad: `(..., out)`, of the result.
            x, packed: as `forward` got them.

        Returns:
            The gradient of x, and by name the gradients of those packed tensors that can be trained.
        """
        raise KernelError(f"{type(self).__name__} has no backward; torch differentiates its forward.")


operators: Registry[AbstractLinear] = Registry("operators", AbstractLinear)

C = TypeVar("C", bound=type[AbstractLinear])


def register_operator(name: str) -> Callable[[C], C]:
    """Class decorator: the operator joins the candidates of sparse linear under `name`.

    A package joins through the entry point group `sparsewright.operators`; the class must carry the same decorator.
    """

    def join(cls: C) -> C:
        cls.name = name
        cls.layouts = (cls.layout,)
        return operators.register(name)(cls)

    return join


def registered() -> list[AbstractLinear]:
    """Every registered operator by name, plug-ins included."""
    return [operator for _, operator in operators.items()]


def able_operator(packed: PackedWeight, tokens: int) -> str | None:
    """Name of the first registered operator that takes this weight, or None."""
    return next((operator.name for operator in registered() if not operator.why_not(packed, tokens)), None)


def run_operator(name: str, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` by a registered operator, differentiable."""
    out, in_ = packed.shape
    if x.dim() == 0 or x.shape[-1] != in_:
        raise KernelError(f"Sparse linear takes x of shape (..., {in_}), got {tuple(x.shape)}.")
    if bias is not None and tuple(bias.shape) != (out,):
        raise KernelError(f"Sparse linear takes a bias of shape ({out},), got {tuple(bias.shape)}.")
    operator = operators.get(name)
    if type(operator).backward is AbstractLinear.backward:
        return operator.forward(x, packed, bias)
    if not torch.compiler.is_compiling():
        refuse_forward_mode(x, bias, *packed.tensors.values())
    about = (packed.layout, packed.pattern, packed.shape, packed.value_dtype, tuple(packed.tensors))
    result: Tensor = _WrittenBackward.apply(name, about, x, bias, *packed.tensors.values())
    return result


def _rebuilt(about: tuple[str, AbstractPattern, tuple[int, int], torch.dtype, tuple[str, ...]], tensors: Any) -> Any:
    layout, pattern, shape, value_dtype, names = about
    return PackedWeight(layout, pattern, shape, value_dtype, dict(zip(names, tensors)))


class _WrittenBackward(torch.autograd.Function):
    """Ties an operator's forward and backward together; torch.compile traces through both."""

    @staticmethod
    def forward(name: str, about: Any, x: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        return operators.get(name).forward(x, _rebuilt(about, tensors), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        name, about, x, bias, *tensors = inputs
        ctx.name, ctx.about, ctx.has_bias = name, about, bias is not None
        ctx.save_for_backward(x, *tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], name: str, about: Any, *args: Any) -> tuple[Tensor, int]:
        run = partial(_WrittenBackward.apply, name, about)
        return run_batched(run, info.batch_size, in_dims[2:], args, bias=1), 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        of_x, of_tensors = operators.get(ctx.name).backward(grad, x, _rebuilt(ctx.about, tensors))
        for place, tensor_name in enumerate(ctx.about[4]):
            if ctx.needs_input_grad[4 + place] and tensor_name not in of_tensors:
                raise KernelError(
                    f"{tensor_name!r} of the packed weight requires a gradient, the backward of {ctx.name!r} gives "
                    f"none. Return it there, or call requires_grad_(False) on the tensor."
                )
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.has_bias else None
        return (None, None, of_x, of_bias, *(of_tensors.get(tensor_name) for tensor_name in ctx.about[4]))
