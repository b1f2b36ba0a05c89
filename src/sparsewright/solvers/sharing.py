"""Scores of units that are kept or dropped together: sums over rows and columns, the same on every machine."""

import torch
from torch import Tensor
from torch.nn import functional


def unit_scores(scores: Tensor, rows: int, columns: int = 1) -> Tensor:
    """Sum the scores of each unit of `rows` x `columns`; the last ones may be cut off and sum over what they have.

    Args:
        scores: `(out, in)`, floating point.
        rows: consecutive rows of a unit.
        columns: consecutive columns of a unit.

    Returns:
        `(ceil(out / rows), ceil(in / columns))`: the scores themselves for units of one weight, else float64.
    """
    if rows == columns == 1:
        return scores
    out, in_ = scores.shape
    total = torch.zeros(-(-out // rows), in_, dtype=torch.float64, device=scores.device)
    # Added in a fixed order, one row at a time: no reduction whose order could depend on threads or device.
    for row in range(min(rows, out)):
        line = scores[row::rows]
        total[: line.shape[0]] += line
    if columns == 1:
        return total
    split = functional.pad(total, (0, -in_ % columns)).unflatten(1, (-1, columns))
    summed: Tensor = split[..., 0].clone()
    for column in range(1, columns):
        summed += split[..., column]
    return summed


def spread(units: Tensor, rows: int, columns: int, shape: tuple[int, int]) -> Tensor:
    """The mask of weights of a shape `(out, in)` from the mask of units `(ceil(out / rows), ceil(in / columns))`."""
    if columns > 1:
        units = units.repeat_interleave(columns, dim=1)[:, : shape[1]]
    return units.repeat_interleave(rows, dim=0)[: shape[0]] if rows > 1 else units
