"""Sparse linear under `torch.autocast("cpu")`: computed in float32, answered in autocast's dtype, as `F.linear` is.

The kernels multiply float32 activations; rounding them first would save nothing. So autocast decides the dtype of the
result only, and the result is at least as exact as the dense layer's.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_LOWER = (torch.bfloat16, torch.float16)
T = TypeVar("T", Tensor, Tensor | None)


def as_float32(tensor: T) -> T:
    """The tensor in float32 if it is bfloat16 or float16; anything else is left to the kernels' own check."""
    return tensor.float() if tensor is not None and tensor.dtype in _LOWER else tensor


def register_autocast(library: torch.library.Library, name: str, *, activations: tuple[int, ...], lowers: bool) -> None:
    """Teach a registered operator what autocast on the CPU means for it.

    Args:
        library: the one the operator was defined in.
        name: of the operator, without namespace.
        activations: positions of the arguments that autocast may have lowered (x, bias, gradients). Values of the
            weight keep their own dtype: they are stored so.
        lowers: whether the result is autocast's dtype; else float32, as for gradients.
    """

    def rule(*args: Any) -> Tensor:
        operator: Callable[..., Tensor] = getattr(torch.ops.sparsewright, name).default
        with torch.autocast("cpu", enabled=False):
            result = operator(*(as_float32(arg) if place in activations else arg for place, arg in enumerate(args)))
        return result.to(torch.get_autocast_dtype("cpu")) if lowers else result

    library.impl(name, rule, "AutocastCPU")
