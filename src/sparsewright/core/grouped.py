"""What n:m:g masks stand on: the order of the patterns, and the best balanced choice of one pattern per column.

Source: STen, arXiv:2304.07613, for the form and the order of storage.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from .. import _native

# The native assignment and the kernels keep a row of numbers per pattern.
MOST_PATTERNS = 1024

# Tiles that are worth a thread of their own.
_TILES_PER_THREAD = 64


@functools.cache
def kept_rows(n: int, m: int) -> Tensor:
    """The patterns of an n:m:g weight in their order of storage: neighbours differ in one place only.

    Returns:
        `(C(m, n), n)` uint8, ascending rows of the block that each pattern keeps. Treat it as read-only.
    """
    return torch.tensor(_ordered(n, m, False), dtype=torch.uint8).view(-1, n)


def _ordered(n: int, m: int, leftmost_last: bool) -> list[tuple[int, ...]]:
    """All ascending n-tuples below m, each differing from the next in one place.

    Tuples without m - 1 come first; `leftmost_last` turns those round, so that the two parts always meet.
    """
    if n in (0, m):
        return [tuple(range(n))]
    without = _ordered(n, m - 1, True)
    with_last = _ordered(n - 1, m - 1, not leftmost_last)
    return (without[::-1] if leftmost_last else without) + [(*rows, m - 1) for rows in with_last]


@functools.cache
def _kept_by_pattern(n: int, m: int) -> Tensor:
    """`(C(m, n), m)` bool."""
    rows = kept_rows(n, m).to(torch.int64)
    return torch.zeros(len(rows), m, dtype=torch.bool).scatter_(1, rows, True)


def row_blocks(rows: Tensor, m: int, fill: float = 0.0) -> Tensor:
    """`(ceil(out / m), m, in)` view or copy of `(out, in)`; rows that fill up the last block hold `fill`."""
    if rows.shape[0] % m:
        rows = functional.pad(rows, (0, 0, 0, -rows.shape[0] % m), value=fill)
    blocks: Tensor = rows.unflatten(0, (-1, m))
    return blocks


def assign_patterns(scores: Tensor, n: int, m: int, g: int) -> Tensor:
    """The patterns of all columns that keep the largest summed score, each used by at most g columns of a chunk.

    Exact, and the same for any number of threads: each tile of `m` rows and `C(m, n) * g` columns is solved alone, by
    sums in a fixed order. Equal sums are told apart by one fixed rule.

    Args:
        scores: `(blocks, m, in)`, finite.
        n, m, g: the rule; at most `MOST_PATTERNS` patterns.

    Returns:
        `(blocks, in)` int32, numbers into `kept_rows(n, m)`, on the CPU.
    """
    held = scores.to("cpu", torch.float64).contiguous()
    blocks, _, in_ = held.shape
    rows = kept_rows(n, m)
    chosen = torch.empty(blocks, in_, dtype=torch.int32)
    tiles = blocks * -(-in_ // (len(rows) * g))
    threads = max(1, min(torch.get_num_threads(), tiles // _TILES_PER_THREAD))
    _native.grouped_nm(held.data_ptr(), blocks, in_, n, m, g, len(rows), rows.data_ptr(), chosen.data_ptr(), threads)
    return chosen


def mask_of_patterns(chosen: Tensor, n: int, m: int, out: int) -> Tensor:
    """The `(out, in)` bool mask that `(blocks, in)` pattern numbers stand for."""
    mask: Tensor = _kept_by_pattern(n, m)[chosen.to(torch.int64)].transpose(1, 2).flatten(0, 1)[:out]
    return mask.contiguous()
