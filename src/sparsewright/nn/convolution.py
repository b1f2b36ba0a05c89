"""What a packed weight does under torch's convolutions: one or two dimensions, any stride, padding and dilation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import KernelError
from ..kernels import conv2d as convolve
from .lower_precision import run_widened
from .sparse_tensor import FUNCTIONS, OPERATORS, SparseTensor, needs_dense

aten = torch.ops.aten

_Sizes = int | Sequence[int]


def _kernel(weight: Any, x: Any, dims: int, operation: str) -> tuple[int, ...]:
    """Kernel size of a packed weight `(out, channels, *kernel)`; refuses everything else."""
    # Asking the tensor itself for its shape would come back through `__torch_function__`, some microseconds later.
    seen = weight.view_shape if type(weight) is SparseTensor and type(x) is not SparseTensor else None
    if seen is None or len(seen) != dims + 2:
        raise needs_dense(f"{operation} with a packed tensor elsewhere than as the weight of {dims + 2} dimensions")
    return seen[2:]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: _Sizes | str = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d` with a packed weight."""
    kernel = _kernel(weight, input, 2, "conv2d")
    assert isinstance(weight, SparseTensor)
    how: Any = padding
    run = partial(convolve, kernel_size=kernel, stride=stride, padding=how, dilation=dilation, groups=groups)
    return run_widened(run, input, weight, bias)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: _Sizes | str = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv1d` with a packed weight: an image of one row."""
    kernel = _kernel(weight, input, 1, "conv1d")
    assert isinstance(weight, SparseTensor)
    how: Any = padding if isinstance(padding, str) else (0, _only(padding))
    run = partial(
        convolve,
        kernel_size=(1, kernel[0]),
        stride=(1, _only(stride)),
        padding=how,
        dilation=(1, _only(dilation)),
        groups=groups,
    )
    return run_widened(run, input.unsqueeze(-2), weight, bias).squeeze(-2)


def _only(sizes: _Sizes) -> int:
    return sizes if isinstance(sizes, int) else sizes[0]


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """`torch.convolution` with a packed weight; transposed convolutions have no kernel."""
    if transposed:
        raise KernelError(
            "A transposed convolution has no kernel for a packed weight. Call `.dense()` on the weight, or leave it "
            "unpacked."
        )
    run = conv1d if weight.dim() == 3 else conv2d
    return run(input, weight, bias, stride, padding, dilation, groups)


def _without_operator(handler: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As `__torch_dispatch__` calls it: the operator first."""
    return lambda func, *args, **kwargs: handler(*args, **kwargs)


# The functions of `torch.nn.functional` are those of `torch`.
FUNCTIONS.update({F.conv2d: conv2d, F.conv1d: conv1d, torch.convolution: convolution})
OPERATORS.update(
    {
        aten.conv2d.default: _without_operator(conv2d),
        aten.conv2d.padding: _without_operator(conv2d),
        aten.conv1d.default: _without_operator(conv1d),
        aten.conv1d.padding: _without_operator(conv1d),
        aten.convolution.default: _without_operator(convolution),
    }
)
