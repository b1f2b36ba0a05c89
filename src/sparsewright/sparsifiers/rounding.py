"""Int8 in the same pass: kept weights on a grid of 255 steps per row, each rounding making up for the others' errors.

Every kept weight in turn takes the grid point that is best while all others stay as they are (cyclic coordinate
descent; Behdin et al. 2023, QuantEase, arXiv:2309.01885), starting from the nearest points. No step raises the layer's
error, so none of it is worse than rounding to the nearest; on Gaussian layers it takes back more than a quarter of what
rounding costs, one sweep of GPTQ (Frantar et al. 2022, arXiv:2210.17323) about a sixth.
"""

import torch
from torch import Tensor

from ..core import LayerStats
from ..layouts import layouts
from ..layouts.rounding import quantise
from .gram import damped_gram
from .sections import LAZY_COLUMNS

# A third pass takes back less than a thirtieth more.
_PASSES = 2
_LARGEST = 127
# Scales that the row's largest value does not give back settle in one step, subnormal ones in two.
_SETTLING = 3


def round_kept(weight: Tensor, mask: Tensor, dense: Tensor, gram: Tensor) -> Tensor:
    """Round what a mask keeps, minimising `trace((X - W) G (X - W)^T)` over the grid.

    The scales are those that the int8 layouts take, and the largest weight of a row stays at the end of its grid, so
    that packing gives the same weights back to the last bit.

    Args:
        weight: `(out, in)`, zero outside the mask: decides the grid and where to start.
        mask: `(out, in)` bool, True = kept.
        dense: `(out, in)`, whose outputs are the goal.
        gram: `(in, in)` float64, damped.

    Returns:
        `(out, in)` float32 on the grid, zero outside the mask.
    """
    values, scale = quantise(weight)
    # Transposed, so that a column is one contiguous line.
    lines = values.T.double().contiguous()
    free = mask.T & ~_first_largest(values).T
    step = scale.double()
    slope = gram @ (lines * step - dense.double().T)
    for _ in range(_PASSES):
        for start in range(0, lines.shape[0], LAZY_COLUMNS):
            block = slice(start, start + LAZY_COLUMNS)
            moved = _round_block(lines[block], free[block], slope[block], gram[block, block], step)
            slope[:start] += gram[:start, block] @ moved
            slope[block.stop :] += gram[block.stop :, block] @ moved
    return on_grid(lines.T.float() * scale[:, None])


def _first_largest(values: Tensor) -> Tensor:
    """`(out, in)` bool: the first of the largest magnitudes of each row."""
    place = values.abs().argmax(1, keepdim=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, place, True)


def _round_block(lines: Tensor, free: Tensor, slope: Tensor, gram: Tensor, step: Tensor) -> Tensor:
    """Move a block of columns in place, and the error's slope in it; returns the moves `(columns, out)` as weights."""
    moved = torch.zeros_like(lines)
    for column in range(lines.shape[0]):
        best = lines[column] - slope[column] / (gram[column, column] * step)
        best = best.round().clamp(-_LARGEST, _LARGEST)
        move = torch.where(free[column], best - lines[column], 0)
        lines[column] += move
        moved[column] = move * step
        slope.addr_(gram[column], moved[column])
    return moved


def on_grid(weight: Tensor) -> Tensor:
    """A weight `(out, in)` as the int8 layouts store it, float32; stored again it stays the same."""
    weight = weight.float()
    for _ in range(_SETTLING):
        stored = layouts.get("int8_weights").rounded(weight, torch.int8)
        if torch.equal(stored, weight):
            break
        weight = stored
    return weight


def round_on(weight: Tensor, mask: Tensor, dense: Tensor, stats: LayerStats, damping: float) -> Tensor:
    """`round_kept` on the gram matrix of a layer's inputs, `(out, in)` in the dtype of `dense`.

    Args:
        weight, mask, dense: as `round_kept` takes them.
        stats: of the inputs, with gram.
        damping: of the gram matrix.
    """
    return round_kept(weight, mask, dense, damped_gram(stats, damping).to(dense.device)).to(dense.dtype)
