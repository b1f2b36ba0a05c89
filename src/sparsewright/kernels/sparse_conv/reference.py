"""The truth about sparse convolution: unpack, then convolve densely. Slow, plain torch, any device and dtype."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ...layouts import PackedWeight
from .geometry import Padding, geometry


def reference_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d` with the weight unpacked.

    Args:
        x: `(batch, channels, height, width)`, floating point.
        packed: weight `(out, channels / groups * kh * kw)` in any layout.
        bias: `(out,)` in the dtype of x, or None.
        kernel_size, stride, padding, dilation, groups: as `conv2d` takes them.

    Returns:
        `(batch, out, height, width)` in the dtype of x.
    """
    how = geometry(kernel_size, stride, padding, dilation, groups)
    weight = packed.unpack().to(x.dtype).view(packed.shape[0], -1, *how.kernel)
    top, bottom, left, right = how.padding
    padded = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(padded, weight, bias, how.stride, 0, how.dilation, how.groups)
