"""Scores of units that are kept or dropped together: sums over rows and columns, the same on every machine."""

import torch
from torch import Tensor


def unit_scores(scores: Tensor, rows: int, columns: int = 1) -> Tensor:
    """Sum the scores of each unit of `rows` x `columns`; a last row group may be shorter.

    Args:
        scores: `(out, in)`, floating point; `in` is a multiple of `columns`.
        rows: consecutive rows of a unit.
        columns: consecutive columns of a unit.

    Returns:
        `(ceil(out / rows), in / columns)`: the scores themselves for units of one weight, else float64.
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
    split = total.unflatten(1, (-1, columns))
    summed: Tensor = split[..., 0].clone()
    for column in range(1, columns):
        summed += split[..., column]
    return summed


def spread(units: Tensor, rows: int, columns: int, out: int) -> Tensor:
    """The mask of weights from the mask of units: `(ceil(out / rows), in / columns)` -> `(out, in)`."""
    if columns > 1:
        units = units.repeat_interleave(columns, dim=1)
    return units.repeat_interleave(rows, dim=0)[:out] if rows > 1 else units
