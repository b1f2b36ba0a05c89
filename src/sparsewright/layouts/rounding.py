"""Rounding weights to bytes, one scale per output row."""

import torch
from torch import Tensor

from ..core import BundleError


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric rounding, one scale per row.

    Args:
        weight: `(out, in)`, floating point.

    Returns:
        `(out, in)` int8 from -127 to 127, and `(out,)` float32 scales, 1 for rows of zeros.
    """
    rows = weight.to(torch.float32)
    largest = rows.abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    # A subnormal row has no scale that its largest value could be divided by.
    scale = torch.where(scale > 0, scale, torch.finfo(torch.float32).tiny)
    return (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def check_scale(scale: Tensor) -> None:
    """Raise BundleError unless every scale is positive and gives finite weights."""
    if not bool((scale > 0).all()) or not bool(torch.isfinite(127 * scale).all()):
        raise BundleError(
            "The scales of int8 values must be positive, and 127 times each finite: the file is damaged. "
            "Write it again."
        )


def check_bytes(values: Tensor) -> None:
    """Raise BundleError where a value is -128, which no rounding gives."""
    if bool((values == -128).any()):
        raise BundleError("Int8 values run from -127 to 127, the file holds -128: it is damaged. Write it again.")
