"""A linear layer whose input is packed, not its weight: what runs a sparse activation."""

from typing import Any

import torch
from torch import Tensor

from ..kernels import linear as multiply
from .sparse_tensor import SparseTensor


def packed_input(x: SparseTensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` by the kernels of packed weights, which take `weight` for their tokens.

    Args:
        x: `(tokens, in)`, packed.
        weight: `(out, in)` dense.
        bias: `(out,)` or None.

    Returns:
        `(tokens, out)`; gradients reach x, weight and bias.
    """
    y = multiply(weight, x.packed, None).T
    if torch.is_grad_enabled() and x.requires_grad:
        y = _WithGradientOfInput.apply(y, x, weight)
    return y if bias is None else y + bias


class _WithGradientOfInput(torch.autograd.Function):
    """Hands y on; backward gives x the gradient that `multiply`, for which x is a frozen weight, does not."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: SparseTensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad, grad @ weight, None
