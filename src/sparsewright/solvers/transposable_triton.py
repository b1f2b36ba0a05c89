"""Exact transposable masks on a GPU, in Triton, which is imported only when scores lie there.

| kernel | a program works on | does |
| --- | --- | --- |
| `_sweep_tiles` | a few tiles in registers | dual midpoint sweeps by sorting networks; marks the tiles they settle |
| `_repair_tiles` | one tile that is left over | shortest augmenting paths (Bellman-Ford) in float64, to the end |

The method and its prices are those of the native solver (`transposable_sweeps.hpp`, `transposable_repair.hpp`).
Triton's interpreter (`TRITON_INTERPRET=1` before the first import of triton) runs the same kernels on CPU tensors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core import require_finite
from .base import MaskSolution

_SWEEPS = 10
_CELLS = 1024  # cells of the tiles that one program holds
# The same roundings as everywhere else.
_OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def _middle(values, N: tl.constexpr, P: tl.constexpr):
    """Half way between the n-th and the (n + 1)-th largest of the last dimension, and both."""
    order = tl.sort(values, dim=2, descending=True)
    place = tl.arange(0, P)[None, None, :]
    nth = tl.sum(tl.where(place == N - 1, order, 0.0), axis=2)
    after = tl.sum(tl.where(place == N, order, 0.0), axis=2)
    return (nth + after) * 0.5, nth, after


@triton.jit
def _sweep_tiles(
    scores,
    mask,
    row_prices,
    column_prices,
    unsolved,
    tiles,
    across,
    in_,
    N: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    TILES: tl.constexpr,
    SWEEPS: tl.constexpr,
):
    """Scores `(out, in)` float32 in tiles of M x M; prices `(tiles, M)` float32; unsolved `(tiles,)`: 0, or 1, or 2
    where a score is not finite."""
    tile = tl.program_id(0).to(tl.int64) * TILES + tl.arange(0, TILES)
    line = tl.arange(0, P)
    there = tile < tiles
    corner = (tile // across * M) * in_ + tile % across * M
    cells = corner[:, None, None] + line[None, :, None] * in_ + line[None, None, :]
    inside = there[:, None, None] & (line < M)[None, :, None] & (line < M)[None, None, :]
    w = tl.load(scores + cells, mask=inside, other=0.0)
    size = tl.max(tl.max(w.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=2), axis=1)
    # As usual_size and grid_of of the native solver.
    usual = (size >= (30 << 23)) & (size < (230 << 23))
    exponent = tl.where(usual, size, 127 << 23) & 0x7F800000
    grid = (exponent + ((4 << 23) + 0x400000)).to(tl.float32, bitcast=True)
    filling = -(exponent + (3 << 23)).to(tl.float32, bitcast=True)
    w = tl.where(inside, w, filling[:, None, None])
    t = tl.permute(w, (0, 2, 1))
    live = (line < M)[None, :]
    a = tl.where(live, tl.sum(tl.where(inside, w, 0.0), axis=2) / M, 0.0)
    b, nth, after = _middle(t - a[:, None, :], N, P)
    b = tl.where(live, b, 0.0)
    going = usual
    for sweep in range(SWEEPS):
        new_a, nth, after = _middle(w - b[:, None, :], N, P)
        a = tl.where(live, new_a, 0.0)
        middle, nth, after = _middle(t - a[:, None, :], N, P)
        fits = tl.where(live, ((after <= b) & (b <= nth)).to(tl.int32), 1)
        going = going & (tl.min(fits, axis=1) == 0)
        step = tl.where(sweep + 2 < SWEEPS, 1.4, 1.0)
        moves = going[:, None] & (sweep + 1 < SWEEPS)
        b = tl.where(moves, tl.where(live, b + step * (middle - b), 0.0), b)
    a = (a + grid[:, None]) - grid[:, None]
    b = (b + grid[:, None]) - grid[:, None]
    bound = grid * (0.5 / 1.5)
    near = (tl.max(tl.abs(a), axis=1) < bound) & (tl.max(tl.abs(b), axis=1) < bound)
    # Prices on the grid: their sum is exact, and so is the comparison.
    kept = ((w > a[:, :, None] + b[:, None, :]) & inside).to(tl.int32)
    rows = tl.where(live, tl.sum(kept, axis=2), N)
    columns = tl.where(live, tl.sum(kept, axis=1), N)
    wrong = tl.sum((rows != N).to(tl.int32), axis=1) + tl.sum((columns != N).to(tl.int32), axis=1)
    solved = usual & near & (wrong == 0)
    state = tl.where(size >= 0x7F800000, 2, tl.where(solved, 0, 1))
    a = tl.where(usual[:, None] & near[:, None], a, 0.0)
    b = tl.where(usual[:, None] & near[:, None], b, 0.0)
    tl.store(mask + cells, kept.to(tl.int8), mask=inside)
    prices = tile[:, None] * M + line[None, :]
    tl.store(row_prices + prices, a, mask=there[:, None] & live)
    tl.store(column_prices + prices, b, mask=there[:, None] & live)
    tl.store(unsolved + tile, state.to(tl.int8), mask=there)


@triton.jit
def _repair_tiles(
    scores,
    mask,
    row_prices,
    column_prices,
    numbers,
    across,
    in_,
    N: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
):
    """One tile of `numbers`: from its prices `(tiles, M)` float64 to the best mask and prices that prove it."""
    tile = tl.load(numbers + tl.program_id(0))
    line = tl.arange(0, P)
    corner = (tile // across * M) * in_ + tile % across * M
    cells = corner + line[:, None] * in_ + line[None, :]
    live = line < M
    inside = live[:, None] & live[None, :]
    none = float("inf")
    w = tl.load(scores + cells, mask=inside, other=0.0).to(tl.float64)
    a = tl.load(row_prices + tile * M + line, mask=live, other=0.0)
    b = tl.load(column_prices + tile * M + line, mask=live, other=0.0)
    kept = inside & (w - a[:, None] - b[None, :] > 0)
    wrong = 1
    while wrong > 0:
        short = tl.where(live, N - tl.sum(kept.to(tl.int32), axis=1), 0)
        over = tl.where(live, tl.sum(kept.to(tl.int32), axis=0) - N, 0)
        wrong = tl.sum(tl.abs(short), axis=0) + tl.sum(tl.abs(over), axis=0)
        if wrong > 0:
            r = w - a[:, None] - b[None, :]
            give = tl.where(kept, tl.maximum(r, 0.0), none)  # a column to a row that it keeps
            take = tl.where(inside & (kept == 0), tl.maximum(-r, 0.0), none)  # a row to a column that it could keep
            far_rows = tl.where(short > 0, 0.0, none).to(tl.float64)
            far_columns = tl.where(over > 0, 0.0, none).to(tl.float64)
            via_rows = tl.full((P,), -1, tl.int32)
            via_columns = tl.full((P,), -1, tl.int32)
            better = 1
            while better > 0:
                offer, by = tl.min(far_rows[:, None] + take, axis=0, return_indices=True)
                nearer = offer < far_columns
                via_columns = tl.where(nearer, by, via_columns)
                far_columns = tl.where(nearer, offer, far_columns)
                better = tl.sum(nearer.to(tl.int32), axis=0)
                offer, by = tl.min(far_columns[None, :] + give, axis=1, return_indices=True)
                nearer = offer < far_rows
                via_rows = tl.where(nearer, by, via_rows)
                far_rows = tl.where(nearer, offer, far_rows)
                better += tl.sum(nearer.to(tl.int32), axis=0)
            row_end, row = tl.min(tl.where(short < 0, far_rows, none), axis=0, return_indices=True)
            column_end, column = tl.min(tl.where(over < 0, far_columns, none), axis=0, return_indices=True)
            length = tl.minimum(row_end, column_end)
            at_column = (column_end <= row_end).to(tl.int32)
            node = tl.where(at_column == 1, column, row).to(tl.int32)
            moving = 1
            while moving > 0:
                via = tl.where(at_column == 1, via_columns, via_rows)
                before = tl.sum(tl.where(line == node, via, 0), axis=0)
                moving = (before >= 0).to(tl.int32)
                i = tl.where(at_column == 1, before, node)
                j = tl.where(at_column == 1, node, before)
                kept = kept ^ ((line[:, None] == i) & (line[None, :] == j) & (moving == 1))
                node = before
                at_column = 1 - at_column
            a += tl.minimum(far_rows, length) - length
            b -= tl.minimum(far_columns, length) - length
    tl.store(mask + cells, kept.to(tl.int8), mask=inside)
    tl.store(row_prices + tile * M + line, a, mask=live)
    tl.store(column_prices + tile * M + line, b, mask=live)


def why_not_in_triton(scores: Tensor, tile: tuple[int, int], counts: tuple[int, int]) -> list[str]:
    """Reasons why these kernels do not take the scores; empty if they do."""
    reasons = []
    if scores.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"they take float32, float16 and bfloat16, got {scores.dtype}")
    if tile[0] != tile[1] or counts[0] != counts[1] or not 0 < counts[0] < tile[0]:
        reasons.append("they take square tiles with one count from 1 to M - 1")
    if scores.shape[-2] % tile[0] or scores.shape[-1] % tile[1]:
        reasons.append("they take whole tiles")
    return reasons


def solve_tiles_in_triton(scores: Tensor, m: int, n: int) -> MaskSolution:
    """The best mask of exactly n of m, with its proof, on the scores' device.

    Args:
        scores: `(*lead, out, in)`, float32, float16 or bfloat16, with an empty `why_not_in_triton`.

    Raises:
        NumericError: a score is NaN or infinite.
    """
    *lead, out, in_ = scores.shape
    matrix = scores.float().reshape(-1, in_).contiguous()
    down, across = matrix.shape[0] // m, in_ // m
    tiles = down * across
    padded = max(2, triton.next_power_of_2(m))
    together = max(1, _CELLS // (padded * padded))
    device = scores.device
    mask = torch.empty(matrix.shape, dtype=torch.bool, device=device)
    rows, columns = (torch.empty((tiles, m), dtype=torch.float32, device=device) for _ in range(2))
    state = torch.empty(tiles, dtype=torch.int8, device=device)
    grid = (triton.cdiv(tiles, together),)
    sizes = {"N": n, "M": m, "P": padded}
    cells = mask.view(torch.int8)
    _sweep_tiles[grid](
        matrix, cells, rows, columns, state, tiles, across, in_, **sizes, TILES=together, SWEEPS=_SWEEPS, **_OPTIONS
    )
    rows, columns = rows.double(), columns.double()
    left = state.nonzero().squeeze(1)
    if len(left):
        if bool((state[left] == 2).any()):
            require_finite(scores, "scores")
        _repair_tiles[(len(left),)](matrix, cells, rows, columns, left, across, in_, **sizes, **_OPTIONS)
    w = matrix.double().reshape(down, m, across, m).transpose(1, 2)
    kept = mask.view(down, m, across, m).transpose(1, 2)
    a, b = rows.view(down, across, m), columns.view(down, across, m)
    r = w - a[..., :, None] - b[..., None, :]
    gap = torch.where(kept, -r, r).clamp_min(0).sum((2, 3))
    total = float(torch.where(kept, w, 0).sum((2, 3)).cpu().numpy().sum())
    shape = (*lead, out // m, in_ // m)
    return MaskSolution(mask.view(scores.shape), total, gap.view(shape), a.reshape(*shape, m), b.reshape(*shape, m))
