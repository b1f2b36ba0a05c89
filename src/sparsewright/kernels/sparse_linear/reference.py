"""The truth about sparse linear: unpack, then multiply densely. Slow, plain torch, any device and dtype."""

from torch import Tensor
from torch.nn import functional

from ...layouts import PackedWeight


def reference_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """`x @ W.T + bias`.

    Args:
        x: `(..., in)`, floating point.
        packed: W `(out, in)` in any layout.
        bias: `(out,)` in the dtype of x, or None.

    Returns:
        `(..., out)` in the dtype of x.
    """
    return functional.linear(x, packed.unpack().to(x.dtype), bias)
