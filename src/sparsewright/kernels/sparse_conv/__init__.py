"""Convolutions with a packed weight."""

from .conv2d import conv2d
from .dispatch import which_conv2d, why_not_conv2d
from .reference import reference_conv2d

__all__ = ["conv2d", "reference_conv2d", "which_conv2d", "why_not_conv2d"]
