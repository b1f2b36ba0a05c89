"""Matrices as tiles side by side, for solvers that work on all of them at once."""

import torch
from torch import Tensor


def cut_tiles(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """`(*lead, out, in)` -> `(tiles, rows, columns)`, row by row; out and in are multiples of rows and columns."""
    out, in_ = matrix.shape[-2:]
    parts = matrix.reshape(-1, out // rows, rows, in_ // columns, columns).transpose(2, 3)
    return parts.reshape(-1, rows, columns)


def join_tiles(tiles: Tensor, out: int, in_: int) -> Tensor:
    """The other way: `(matrices, out, in)`."""
    rows, columns = tiles.shape[-2:]
    parts = tiles.reshape(-1, out // rows, in_ // columns, rows, columns).transpose(2, 3)
    return parts.reshape(-1, out, in_)


def take_by_order(order: Tensor, size: int, n: int) -> Tensor:
    """Greedy: take cells in the given order while their row and their column hold fewer than `n`.

    Args:
        order: `(tiles, size * size)` int64, cells of a tile, best first.

    Returns:
        `(tiles, size, size)` bool.
    """
    tiles = order.shape[0]
    rows, columns = order // size, order % size
    row_room = order.new_full((tiles, size), n)
    column_room = order.new_full((tiles, size), n)
    taken = order.new_zeros((tiles, size * size), dtype=torch.bool)
    for step in range(size * size):
        row, column = rows[:, step : step + 1], columns[:, step : step + 1]
        free = (row_room.gather(1, row) > 0) & (column_room.gather(1, column) > 0)
        row_room.scatter_add_(1, row, -free.long())
        column_room.scatter_add_(1, column, -free.long())
        taken.scatter_(1, order[:, step : step + 1], free)
    return taken.view(tiles, size, size)
