"""Refuse NaN and infinity at the door, with the position of the first one."""

import torch
from torch import Tensor

from .errors import NumericError


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
