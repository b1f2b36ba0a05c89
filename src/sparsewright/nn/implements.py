"""`implements`: serve a torch function or operator for packed weights from outside this package."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..core import RegistryError
from .sparse_tensor import FUNCTIONS, OPERATORS

H = TypeVar("H", bound=Callable[..., Any])


def implements(*functions: Any) -> Callable[[H], H]:
    """Decorator: the handler is called in place of these functions whenever a `SparseTensor` is among the arguments.

    Args:
        functions: torch functions (`torch.nn.functional.gelu`; above autograd, so the handler is differentiable if what
            it calls is) or operators (`torch.ops.aten.add.Tensor`; below autograd).

    Raises:
        RegistryError: one of them has a handler already.
    """

    def join(handler: H) -> H:
        for function in functions:
            table = OPERATORS if isinstance(function, torch._ops.OpOverload) else FUNCTIONS
            if function in table:
                raise RegistryError(f"{function} is served for packed weights already; only one handler can do that.")
            table[function] = _without_operator(handler) if table is OPERATORS else handler
        return handler

    return join


def _without_operator(handler: Callable[..., Any]) -> Callable[..., Any]:
    def serve(operator: Any, *args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return serve
