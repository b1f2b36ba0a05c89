"""Sizes of a convolution: what its arguments mean, and whether an input fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from ...core import KernelError

Pair = tuple[int, int]
Padding = int | Sequence[int] | Literal["valid", "same"]


@final
@dataclass(frozen=True)
class Geometry:
    """A convolution without its weight.

    Attributes:
        kernel, stride, dilation: down and across.
        padding: rows of zeros above and below, columns of zeros on the left and on the right.
        groups: groups of channels that do not see each other.
    """

    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int

    def out_size(self, height: int, width: int) -> Pair:
        """Height and width of the output."""
        top, bottom, left, right = self.padding
        down = height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1
        across = width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1
        return down // self.stride[0] + 1, across // self.stride[1] + 1

    def channels(self, columns: int) -> int:
        """Channels of the input for a weight with so many columns."""
        return columns // (self.kernel[0] * self.kernel[1]) * self.groups

    @property
    def is_pointwise(self) -> bool:
        """Whether every pixel is a token of its own: the convolution is a linear layer."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.padding) and self.groups == 1


def geometry(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry:
    """Read the arguments of `F.conv2d`.

    Raises:
        KernelError: a size is not a positive integer or a pair of them, or "same" padding meets a stride.
    """
    kernel, steps, apart = (
        _pair(name, value, 1)
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    if groups < 1:
        raise KernelError(f"A convolution has at least one group of channels, got {groups}.")
    if isinstance(padding, str):
        if padding not in ("valid", "same") or (padding == "same" and steps != (1, 1)):
            raise KernelError(f"Padding is numbers, 'valid', or 'same' at stride 1, got {padding!r} at stride {steps}.")
        total = [apart[i] * (kernel[i] - 1) if padding == "same" else 0 for i in (0, 1)]
        # torch puts the odd one behind.
        edges = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    elif isinstance(padding, Sequence) and len(padding) == 4:
        if not all(_whole(size) for size in padding):
            raise KernelError(f"padding is one, two or four integers, got {padding}.")
        edges = (int(padding[0]), int(padding[1]), int(padding[2]), int(padding[3]))
    else:
        down, across = _pair("padding", padding, 0)
        edges = (down, down, across, across)
    return Geometry(kernel, steps, edges, apart, groups)


def _pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    sizes = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(sizes) == 1:
        sizes = (sizes[0], sizes[0])
    if len(sizes) != 2 or any(not _whole(size) or size < least for size in sizes):
        raise KernelError(f"{name} is one or two integers of at least {least}, got {value!r}.")
    return int(sizes[0]), int(sizes[1])


def _whole(size: object) -> bool:
    return isinstance(size, int | torch.SymInt) and not isinstance(size, bool)


def check_call(x: Tensor, out: int, columns: int, bias: Tensor | None, how: Geometry) -> None:
    """Raise KernelError unless x `(batch, channels, height, width)` and bias fit the weight `(out, columns)`."""
    channels = how.channels(columns)
    if columns % (how.kernel[0] * how.kernel[1]) or out % how.groups:
        raise KernelError(
            f"A weight ({out}, {columns}) is no {how.kernel[0]}x{how.kernel[1]} kernel in {how.groups} groups: its "
            "columns are channels x kernel height x kernel width. Name the kernel size it was packed from."
        )
    if x.dim() != 4 or x.shape[1] != channels:
        raise KernelError(
            f"Sparse convolution takes x of shape (batch, {channels}, height, width), got {tuple(x.shape)}."
        )
    if min(how.out_size(x.shape[2], x.shape[3])) < 1:
        raise KernelError(
            f"The kernel {how.kernel} (dilation {how.dilation}) is larger than the padded input, got x of shape "
            f"{tuple(x.shape)}. Pad more."
        )
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise KernelError(
                f"The sparse kernels compute in float32, got {name} of {tensor.dtype}. Cast it, or leave it dense."
            )
        if tensor is not None and tensor.device.type not in ("cpu", "meta"):
            raise KernelError(f"The sparse kernels run on the CPU, got {name} on {tensor.device}. Move it there.")
    if bias is not None and tuple(bias.shape) != (out,):
        raise KernelError(f"Sparse convolution takes a bias of shape ({out},), got {tuple(bias.shape)}.")
