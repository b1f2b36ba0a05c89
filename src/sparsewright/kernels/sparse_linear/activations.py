"""Activations that kernels apply to y while it is near."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...core import KernelError, suggest

Activation = Literal["relu", "gelu", "gelu_tanh"]

# Numbers as in activation.hpp.
CODES: dict[str | None, int] = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}

_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
}


def check_activation(activation: str | None) -> None:
    """Raise KernelError unless kernels know this activation."""
    if not isinstance(activation, str) or activation not in CODES:
        raise KernelError(
            f"The kernels fuse relu, gelu and gelu_tanh, got {activation!r}. {suggest(str(activation), _TORCH)}"
        )


def apply_activation(y: Tensor, activation: str | None) -> Tensor:
    """The activation as torch computes it, where no kernel did."""
    return y if activation is None else _TORCH[activation](y)
