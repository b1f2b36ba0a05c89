"""The best `n` along the last dimension, exactly, ties to the lower index: what all exact solvers here stand on."""

import torch
from torch import Tensor

# Up to here every pair is compared: about m / 2 passes over the scores, faster than a sort of short rows.
_PAIRWISE_LIMIT = 16


def top_n(scores: Tensor, n: int) -> Tensor:
    """Mark the `n` highest of the last dimension.

    The choice depends on the scores alone, not on threads, device or the other rows: both ways below pick the same
    set, the highest scores with ties broken towards the lower index.

    Args:
        scores: `(*, m)`, floating point, no NaN.
        n: 0 to m.

    Returns:
        `(*, m)` bool with exactly `n` marks per row.
    """
    m = scores.shape[-1]
    if n <= 0 or n >= m:
        return torch.full(scores.shape, n >= m, dtype=torch.bool, device=scores.device)
    return _by_pairs(scores, n) if m <= _PAIRWISE_LIMIT else _by_threshold(scores, n)


def top_counts(scores: Tensor, counts: Tensor) -> Tensor:
    """Like `top_n` with a count of its own for every row.

    Args:
        scores: `(rows, m)`, floating point, no NaN.
        counts: `(rows,)` integers, 0 to m.

    Returns:
        `(rows, m)` bool with exactly `counts[i]` marks in row i.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[-1], device=scores.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter_(-1, order, chosen)


def _by_pairs(scores: Tensor, n: int) -> Tensor:
    """Rank = how many beat it; an earlier one wins a tie."""
    # Position-major, so that every comparison runs over one contiguous line.
    lines = scores.movedim(-1, 0).contiguous()
    m = lines.shape[0]
    ranks = torch.zeros(lines.shape, dtype=torch.uint8, device=scores.device)
    for first in range(m - 1):
        # (m - first - 1, ...): whether the earlier one stands before each later one.
        before = lines[first] >= lines[first + 1 :]
        ranks[first + 1 :] += before
        ranks[first] += (m - first - 1) - before.sum(0, dtype=torch.uint8)
    return (ranks < n).movedim(0, -1).contiguous()


def _by_threshold(scores: Tensor, n: int) -> Tensor:
    """Keep all above the n-th score, then the first few equal to it."""
    m = scores.shape[-1]
    threshold = scores.kthvalue(m - n + 1, dim=-1, keepdim=True).values
    mask = scores > threshold
    missing = n - mask.sum(-1, keepdim=True)
    equal = scores == threshold
    if bool((equal.sum(-1, keepdim=True) == missing).all()):
        return mask | equal
    return mask | (equal & (equal.cumsum(-1) <= missing))
