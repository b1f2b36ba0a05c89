"""The exact transposable solver in plain torch, for devices without the native code; all tiles side by side.

Dual midpoint sweeps, then one shortest augmenting path per unsolved tile and turn (Bellman-Ford in float64), until all
counts are met: the method of `transposable_repair.hpp`, with the same prices as proof.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core import Edge, PatternError
from .base import Count, MaskSolution
from .tiling import cut_tiles, join_tiles

_SWEEPS = 10
_OVERSHOOT = 1.4
# Prices lie on a grid of this part of a tile's largest score, so that reduced scores of float32 are exact.
_GRID_BITS = 20


@dataclass
class _Tiles:
    """Tiles at work: `(tiles, rows, columns)` scores, what may be chosen, and what rows and columns keep."""

    w: Tensor
    open: Tensor
    row_keep: Tensor
    column_keep: Tensor
    at_most: Tensor  # (tiles,) bool
    a: Tensor
    b: Tensor
    kept: Tensor

    def of(self, chosen: Tensor) -> "_Tiles":
        return _Tiles(*(cast(Tensor, value)[chosen] for value in vars(self).values()))

    def put(self, chosen: Tensor, part: "_Tiles") -> None:
        self.a[chosen], self.b[chosen], self.kept[chosen] = part.a, part.b, part.kept

    @property
    def reduced(self) -> Tensor:
        return self.w - self.a[:, :, None] - self.b[:, None, :]

    def missing(self) -> tuple[Tensor, Tensor]:
        """What rows and columns must still take (negative: give away) to have what they must have."""
        rows = self.row_keep - self.kept.sum(2)
        columns = self.column_keep - self.kept.sum(1)
        free_rows = self.at_most[:, None] & (self.a <= 0) & (rows > 0)
        free_columns = self.at_most[:, None] & (self.b <= 0) & (columns > 0)
        return rows.masked_fill(free_rows, 0), columns.masked_fill(free_columns, 0)


def solve_tiles_in_torch(
    scores: Tensor,
    tile: tuple[int, int],
    counts: tuple[int, int],
    count: Count,
    edge: Edge,
    keep: Tensor | None = None,
    drop: Tensor | None = None,
    first: Tensor | None = None,
) -> MaskSolution:
    """Solve on the scores' device; arguments as `solve_tiles` has checked them, `first` column prices to start from.

    Raises:
        PatternError: no mask obeys `keep` and `drop`.
    """
    lead, (out, in_) = scores.shape[:-2], scores.shape[-2:]
    down, across = -(-out // tile[0]), -(-in_ // tile[1])

    def cut(matrix: Tensor) -> Tensor:
        return cut_tiles(pad(matrix, (0, across * tile[1] - in_, 0, down * tile[0] - out)), *tile)

    w = cut(scores.double())
    # Every tile at the scale of 1, by a power of two in two steps: neither grids nor sums leave the range of float64.
    power = torch.frexp(w.abs().amax((1, 2))).exponent
    w = _scaled(w, -power[:, None, None])
    there = cut(torch.ones_like(scores, dtype=torch.bool))
    is_edge = ~there.flatten(1).all(1)
    forced = cut(keep) if keep is not None else torch.zeros_like(there)
    gone = cut(drop) if drop is not None else torch.zeros_like(there)
    row_keep = counts[0] - forced.sum(2)
    column_keep = counts[1] - forced.sum(1)
    at_most = is_edge | (count == "at_most")
    dense = is_edge & (edge == "dense")
    _require_feasible((forced & gone).any(2), row_keep < 0, column_keep < 0, dense, lead, (down, across))
    tiles = _Tiles(
        w,
        there & ~forced & ~gone & ~dense[:, None, None],
        row_keep.clamp_min(0),
        column_keep.clamp_min(0),
        at_most,
        torch.zeros_like(w[:, :, 0]),
        torch.zeros_like(w[:, 0, :]),
        torch.zeros_like(there),
    )
    if first is not None:
        # No best price is further out, and larger ones would cost precision.
        first = _scaled(first.to(w.device, torch.float64).reshape(-1, tile[1]), -power[:, None])
        first = first.nan_to_num(0.0).clamp(-4.0, 4.0)
    _sweep(tiles, first)
    tiles.kept = (tiles.reduced > 0) & tiles.open
    _repair(tiles, lead, (down, across))
    tiles.kept &= ~at_most[:, None, None] | (w > 0)
    gap = _scaled(_gap(tiles).masked_fill(dense, 0), power).reshape(*lead, down, across)
    chosen = tiles.kept | (forced & there) | (there & ~gone & dense[:, None, None])
    kept = float(torch.where(chosen, _scaled(w, power[:, None, None]), 0).sum((1, 2)).cpu().numpy().sum())
    mask = join_tiles(chosen, down * tile[0], across * tile[1])[:, :out, :in_].reshape(scores.shape).contiguous()
    prices = [
        _scaled(side.masked_fill(dense[:, None], 0), power[:, None]).reshape(*lead, down, across, -1)
        for side in (tiles.a, tiles.b)
    ]
    return MaskSolution(mask, kept, gap, prices[0], prices[1])


def _scaled(values: Tensor, power: Tensor) -> Tensor:
    """Values times two to a power that itself may be out of range."""
    half = torch.div(power, 2, rounding_mode="floor")
    return torch.ldexp(torch.ldexp(values, half), power - half)


def _sweep(tiles: _Tiles, first: Tensor | None) -> None:
    largest = torch.where(tiles.open, tiles.w, 0).abs().amax((1, 2))
    grid = torch.ldexp(torch.ones_like(largest), (torch.frexp(largest).exponent - _GRID_BITS).to(largest.dtype))
    values = tiles.w.masked_fill(~tiles.open, -torch.inf)
    mirrored = values.transpose(1, 2)

    def price(side: Tensor, others: Tensor, keep: Tensor, old: Tensor | None, step: float) -> Tensor:
        found = _middle(side - others[:, None, :], keep, largest)
        if old is not None:
            found = old + step * (found - old)
        found = torch.round(found / grid[:, None]) * grid[:, None]
        return torch.where(tiles.at_most[:, None], found.clamp_min(0), found)

    if first is not None:
        tiles.b = torch.round(first / grid[:, None]) * grid[:, None]
        tiles.b = torch.where(tiles.at_most[:, None], tiles.b.clamp_min(0), tiles.b)
    else:
        tiles.b = price(mirrored, tiles.a, tiles.column_keep, None, 1.0)
    tiles.a = price(values, tiles.b, tiles.row_keep, None, 1.0)
    for turn in range(_SWEEPS):
        rows, columns = _Tiles(**{**vars(tiles), "kept": (tiles.reduced > 0) & tiles.open}).missing()
        if not bool(rows.any()) and not bool(columns.any()):
            return
        tiles.b = price(mirrored, tiles.a, tiles.column_keep, tiles.b, _OVERSHOOT if turn + 2 < _SWEEPS else 1.0)
        tiles.a = price(values, tiles.b, tiles.row_keep, None, 1.0)


def _middle(values: Tensor, keep: Tensor, span: Tensor) -> Tensor:
    """Half way between the last value that is kept and the first that is not, `(tiles, lines)`."""
    order = values.sort(-1, descending=True).values
    edges = torch.cat(
        [torch.full_like(order[..., :1], torch.inf), order, torch.full_like(order[..., :1], -torch.inf)], -1
    )
    high, low = (edges.gather(-1, keep[..., None] + step).squeeze(-1) for step in (0, 1))
    high = torch.where(torch.isinf(high), low + 2 * span[:, None], high)
    low = torch.where(torch.isinf(low), high - 2 * span[:, None], low)
    middle = (high + low) / 2
    return torch.where(torch.isfinite(middle), middle, 0)


def _repair(tiles: _Tiles, lead: tuple[int, ...], grid: tuple[int, int]) -> None:
    while True:
        rows, columns = tiles.missing()
        wrong = (rows != 0).any(1) | (columns != 0).any(1)
        if not bool(wrong.any()):
            return
        at = wrong.nonzero().squeeze(1)
        part = tiles.of(at)
        stuck = _move_one(part, rows[at], columns[at])
        if bool(stuck.any()):
            first = int(stuck.nonzero()[0])
            row = int((rows[at[first]] != 0).to(torch.uint8).argmax()) if bool(rows[at[first]].any()) else None
            column = int((columns[at[first]] != 0).to(torch.uint8).argmax())
            _refuse(int(at[first]), row if row is not None else -1 - column, lead, grid)
        tiles.put(at, part)


def _move_one(tiles: _Tiles, rows: Tensor, columns: Tensor) -> Tensor:
    """One unit per tile along its cheapest way, prices with it; returns which tiles have no way."""
    from_rows, from_columns = rows > 0, columns < 0
    ground_start = ~(from_rows.any(1) | from_columns.any(1))
    slack_rows = tiles.at_most[:, None] & (tiles.a <= 0) & (tiles.kept.sum(2) < tiles.row_keep)
    slack_columns = tiles.at_most[:, None] & (tiles.b <= 0) & (tiles.kept.sum(1) < tiles.column_keep)
    reduced = tiles.reduced
    give = reduced.clamp_min(0).masked_fill(~tiles.kept, torch.inf)  # column to row
    take = (-reduced).clamp_min(0).masked_fill(tiles.kept | ~tiles.open, torch.inf)  # row to column
    nothing = torch.zeros_like(tiles.a), torch.zeros_like(tiles.b)
    starts_at = torch.where(ground_start[:, None], slack_rows, from_rows)
    far_rows = nothing[0].masked_fill(~starts_at, torch.inf)
    far_columns = nothing[1].masked_fill(~from_columns, torch.inf)
    ground_price = torch.where(tiles.at_most[:, None], tiles.b, torch.inf)
    far_columns = torch.where(ground_start[:, None], ground_price, far_columns)
    via_rows = torch.full_like(rows, -1)
    via_columns = torch.full_like(columns, -1)
    for _ in range(2 * (rows.shape[1] + columns.shape[1])):
        offer, by = (far_rows[:, :, None] + take).min(1)
        better_columns = offer < far_columns
        far_columns = torch.where(better_columns, offer, far_columns)
        via_columns = torch.where(better_columns, by, via_columns)
        offer, by = (far_columns[:, None, :] + give).min(2)
        better_rows = offer < far_rows
        far_rows = torch.where(better_rows, offer, far_rows)
        via_rows = torch.where(better_rows, by, via_rows)
        if not bool(better_columns.any()) and not bool(better_rows.any()):
            break
    ends_rows = far_rows.masked_fill(~(rows < 0), torch.inf)
    ends_columns = far_columns.masked_fill(~(columns > 0), torch.inf)
    may_rest = (tiles.at_most & ~ground_start)[:, None]
    ends_rows = torch.minimum(ends_rows, torch.where(may_rest, far_rows + tiles.a, torch.inf))
    ends_columns = torch.minimum(ends_columns, far_columns.masked_fill(~(slack_columns & may_rest), torch.inf))
    ends = torch.cat([ends_rows, ends_columns], 1)
    length, node = ends.min(1)
    stuck = torch.isinf(length)
    length = torch.where(stuck, 0, length)
    _walk(tiles, node.masked_fill(stuck, -1), via_rows, via_columns)
    shift = torch.where(ground_start, 0, length)[:, None]
    tiles.a = tiles.a + torch.minimum(far_rows, length[:, None]) - shift
    tiles.b = tiles.b - torch.minimum(far_columns, length[:, None]) + shift
    return stuck


def _walk(tiles: _Tiles, node: Tensor, via_rows: Tensor, via_columns: Tensor) -> None:
    """Flip the cells between a node (rows first, then columns; -1: none) and where its way began."""
    count = via_rows.shape[1]
    index = torch.arange(len(node), device=node.device)
    while True:
        is_column = node >= count
        line = torch.where(is_column, node - count, node).clamp_min(0)
        last = via_columns.shape[1] - 1
        before = torch.where(
            is_column, via_columns[index, line.clamp_max(last)], via_rows[index, line.clamp_max(count - 1)]
        )
        moving = (node >= 0) & (before >= 0)
        if not bool(moving.any()):
            return
        row = torch.where(is_column, before, line)[moving]
        column = torch.where(is_column, line, before)[moving]
        tiles.kept[index[moving], row, column] ^= True
        node = torch.where(moving, torch.where(is_column, before, before + count), -1)


def _gap(tiles: _Tiles) -> Tensor:
    reduced = tiles.reduced
    wrong = torch.where(tiles.kept, -reduced, reduced).clamp_min(0).masked_fill(~tiles.open, 0).sum((1, 2))
    rows = tiles.a * (tiles.row_keep - tiles.kept.sum(2))
    columns = tiles.b * (tiles.column_keep - tiles.kept.sum(1))
    return wrong + torch.where(tiles.at_most, rows.sum(1) + columns.sum(1), 0)


def _require_feasible(
    both: Tensor, rows: Tensor, columns: Tensor, dense: Tensor, lead: tuple[int, ...], grid: tuple[int, int]
) -> None:
    wrong_rows = (both | rows) & ~dense[:, None]
    wrong = wrong_rows.any(1) | (columns & ~dense[:, None]).any(1)
    if not bool(wrong.any()):
        return
    tile = int(wrong.to(torch.uint8).argmax())
    if bool(wrong_rows[tile].any()):
        _refuse(tile, int(wrong_rows[tile].to(torch.uint8).argmax()), lead, grid)
    _refuse(tile, -1 - int(columns[tile].to(torch.uint8).argmax()), lead, grid)


def _refuse(tile: int, row: int, lead: tuple[int, ...], grid: tuple[int, int]) -> None:
    raise infeasible(tile, row, lead, grid)


def infeasible(tile: int, row: int, lead: tuple[int, ...], grid: tuple[int, int]) -> PatternError:
    """What to say where no mask obeys the counts.

    Args:
        tile: its number in the order of memory.
        row: of the tile, or -1 - column where a column cannot have its count.
        lead: leading dimensions of the scores.
        grid: tiles down and across.
    """
    place = [int(i) for i in torch.unravel_index(torch.tensor(tile), (*lead, *grid))]
    line = f"row {row}" if row >= 0 else f"column {-1 - row}"
    return PatternError(
        "No mask keeps what `keep` names, drops what `drop` names and has the pattern's counts: "
        f"tile {place} cannot have its count in {line}. Force fewer cells of that tile."
    )
