"""Refuse NaN and infinity at the door, with the position of the first one, and numbers that are none."""

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .errors import NumericError


def is_whole(value: Any, least: int) -> bool:
    """Whether `value` is a whole number of at least `least`; truth values are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether `value` is a number, infinity included; NaN and truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) == float(value)


def require_finite(tensor: Tensor, what: str) -> None:
    """Raise unless every element is finite.

    Args:
        tensor: any shape and dtype; integers and bool always pass.
        what: how the message names it, for instance `weight of encoder.layer.0.fc1`.

    Raises:
        NumericError: with the value and the index of the first element that is not finite.
    """
    if not tensor.is_floating_point() or tensor.is_meta:
        return
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    flat = int((~finite.reshape(-1)).to(torch.uint8).argmax())
    position = [int(i) for i in torch.unravel_index(torch.tensor(flat), tensor.shape)]
    value = tensor.reshape(-1)[flat].item()
    raise NumericError(
        f"The {what} must be finite, but element {position} is {value}. "
        "Repair the checkpoint or the data that produced it; nothing was changed."
    )
