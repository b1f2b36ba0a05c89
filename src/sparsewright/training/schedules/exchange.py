"""Exchange: give up the kept weights of least worth for the dropped ones of most, under any pattern.

Drop and grow, as SET and RigL do it without a pattern, is one problem of the mask solver: kept places score the rank of
their weight, dropped ones the rank of their growth, and a bonus for all kept places decides how many change. The kept
share falls as the bonus falls (the solvers are exact, so it is a parametric maximum): a search for the bonus meets the
fraction as nearly as the pattern has masks. Without a pattern this is exactly: the smallest go, the best come.
"""

import torch
from torch import Tensor

from .base import MaskChange

# Bonuses to try: half of the trials halve the range, so the last differ by less than the ranks of ten million weights.
_TRIALS = 48
# Nearer than this share of the wanted exchanges, bisection stops.
_NEAR = 1 / 200


def exchange(change: MaskChange, growth: Tensor, fraction: float) -> Tensor:
    """A mask that differs from the present one in about `fraction` of what is kept.

    Args:
        change: the layer. A mask that breaks the pattern (the dense one before `begin`) is replaced by the largest
            weights.
        growth: `(out, in)`, finite; higher means that a dropped weight is wanted more.
        fraction: 0..1 of the kept weights.

    Returns:
        `(out, in)` bool, of the pattern.
    """
    if not change.obeys:
        return change.solve(change.weight.abs())
    mask = change.mask
    wanted = round(fraction * int(mask.sum()))
    if wanted == 0 or bool(mask.all()):
        return mask
    # Ranks, because a weight and a gradient have no common unit.
    scores = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    scores[mask] = _ranks(change.weight.abs()[mask])
    scores[~mask] = _ranks(growth[~mask])
    best, distance = mask, wanted
    # At a bonus of 1 every kept place beats every other one and none goes; at -1 as many go as the pattern lets.
    low, high = -1.0, 1.0
    most, least = min(int(mask.sum()), int((~mask).sum())), 0
    for trial in range(_TRIALS):
        # In turns by halves, which always arrives, and where a straight line between the ends meets what is wanted.
        part = 0.5 if trial % 2 else (most - wanted) / max(1, most - least)
        bonus = low + min(0.95, max(0.05, part)) * (high - low)
        found = change.solve(scores + bonus * mask)
        gone = int((mask & ~found).sum())
        if abs(gone - wanted) < distance:
            best, distance = found, abs(gone - wanted)
        if distance <= _NEAR * wanted:
            break
        if gone > wanted:
            low, most = bonus, gone
        else:
            high, least = bonus, gone
    return best


def _ranks(values: Tensor) -> Tensor:
    """`(count,)` float64 in (0, 1]: the share of values that are not higher; equal ones by their place."""
    order = values.argsort(stable=True)
    ranks = torch.empty(len(values), dtype=torch.float64, device=values.device)
    ranks[order] = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device) / max(1, len(values))
    return ranks
