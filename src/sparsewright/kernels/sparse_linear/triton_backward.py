"""The backward of sparse linear on a GPU, in Triton: the gradient of x through the same kept weights, and that of the
kept weights themselves. Nothing dense is made, nothing is atomic. Imported like `triton`, only when a call needs it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core import KernelError
from ...layouts.vector import operand_places
from .derived import DerivedCache
from .triton import LANES, OPTIONS, check_operand

_ROWS = 16  # weights that a program takes at once


@triton.jit
def _input_grad(
    grad,
    values,
    order,
    row_group,
    starts,
    x_grad,
    tokens,
    in_,
    out,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    KEPT: tl.constexpr,
):
    """x_grad `(in, tokens)`: LANES tokens of one column from grad `(out, tokens)`, over the row groups that keep it."""
    column, tile = tl.program_id(0) % in_, tl.program_id(0) // in_
    token = tile.to(tl.int64) * LANES + tl.arange(0, LANES)
    lane, lane_row = tl.arange(0, KEPT), tl.arange(0, GROUP)
    sums = tl.zeros((KEPT, GROUP, LANES), dtype=tl.float32)
    begin, end = tl.load(starts + column), tl.load(starts + column + 1)
    for first in range(begin, end, KEPT):
        inside = first + lane < end
        kept = tl.load(order + first + lane, mask=inside, other=0).to(tl.int64)
        row = tl.load(row_group + first + lane, mask=inside, other=0).to(tl.int64)[:, None] * GROUP + lane_row[None, :]
        present = inside[:, None] & (row < out)
        weights = tl.load(values + kept[:, None] * GROUP + lane_row[None, :], mask=present, other=0.0)
        some_grad = tl.load(
            grad + row[:, :, None] * tokens + token[None, None, :],
            mask=present[:, :, None] & (token < tokens)[None, None, :],
            other=0.0,
        )
        sums += weights.to(tl.float32)[:, :, None] * some_grad.to(tl.float32)
    total = tl.sum(tl.sum(sums, axis=0), axis=0)
    tl.store(x_grad + column.to(tl.int64) * tokens + token, total, mask=token < tokens)


@triton.jit
def _weight_grad(
    grad,
    x,
    column,
    row_group,
    w_grad,
    kept_all,
    tokens,
    out,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    KEPT: tl.constexpr,
):
    """w_grad `(kept, GROUP)`: KEPT kept columns, from grad `(out, tokens)` and x `(in, tokens)`."""
    kept = tl.program_id(0).to(tl.int64) * KEPT + tl.arange(0, KEPT)
    lane_row = tl.arange(0, GROUP)
    inside = kept < kept_all
    at = tl.load(column + kept, mask=inside, other=0).to(tl.int64)
    row = tl.load(row_group + kept, mask=inside, other=0).to(tl.int64)[:, None] * GROUP + lane_row[None, :]
    present = inside[:, None] & (row < out)
    sums = tl.zeros((KEPT, GROUP, LANES), dtype=tl.float32)
    for first in range(0, tokens, LANES):
        token = first + tl.arange(0, LANES)
        some_x = tl.load(
            x + at[:, None] * tokens + token[None, :], mask=inside[:, None] & (token < tokens)[None, :], other=0.0
        )
        some_grad = tl.load(
            grad + row[:, :, None] * tokens + token[None, None, :],
            mask=present[:, :, None] & (token < tokens)[None, None, :],
            other=0.0,
        )
        sums += some_grad.to(tl.float32) * some_x.to(tl.float32)[:, None, :]
    tl.store(w_grad + kept[:, None] * GROUP + lane_row[None, :], tl.sum(sums, axis=2), mask=inside[:, None])


def triton_input_grad(grad: Tensor, values: Tensor, index: Tensor, pointers: Tensor, in_: int) -> Tensor:
    """`grad @ W` for a weight in the layout `vector`.

    Args:
        grad: `(..., out)`, float32, float16 or bfloat16.
        values, index, pointers: tensors of the layout, on the device of grad.
        in_: columns of W.

    Returns:
        `(..., in)` in the dtype of grad.

    Raises:
        KernelError: a tensor is on another device or of another dtype.
    """
    out, group = grad.shape[-1], values.shape[1]
    check_operand({"the gradient": grad, "values": values}, index, pointers, group, out)
    rows = grad.reshape(-1, out).t().contiguous()
    tokens = rows.shape[1]
    if not tokens:
        return grad.new_empty(*grad.shape[:-1], in_)
    by_column = _by_column.get((index, pointers), lambda: _sorted_by_column(index, pointers, in_))
    x_grad = grad.new_empty(in_, tokens)
    grid = (in_ * triton.cdiv(tokens, LANES),)
    tile = {"GROUP": group, "LANES": LANES, "KEPT": max(1, _ROWS // group)}
    with torch.cuda.device_of(grad):
        _input_grad[grid](rows, values.contiguous(), *by_column, x_grad, tokens, in_, out, **tile, **OPTIONS)
    return x_grad.t().contiguous().view(*grad.shape[:-1], in_)


_by_column: DerivedCache[tuple[Tensor, Tensor, Tensor]] = DerivedCache()


def _sorted_by_column(index: Tensor, pointers: Tensor, in_: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kept weights column by column: places in `values`, row groups, and where each column starts; int32."""
    row, column = operand_places(index, pointers, in_)
    # Stable: row groups rise within a column, so that sums keep one order.
    order = torch.argsort(column, stable=True)
    counts = torch.bincount(column, minlength=in_)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return order.to(torch.int32), row[order].to(torch.int32), starts.to(torch.int32)


def triton_weight_grad(grad: Tensor, x: Tensor, index: Tensor, pointers: Tensor, group: int) -> Tensor:
    """`grad.T @ x` at the kept places only.

    Args:
        grad: `(..., out)`, float32, float16 or bfloat16.
        x: `(..., in)`, one row for every row of grad.
        index, pointers: tensors of the layout `vector`, on the device of x.
        group: rows of a row group.

    Returns:
        `(kept, group)` in the dtype of grad, as values lie; rows that only fill the last group get zeros.

    Raises:
        KernelError: a tensor is on another device or of another dtype, or the tokens differ.
    """
    out, in_ = grad.shape[-1], x.shape[-1]
    check_operand({"the gradient": grad, "x": x}, index, pointers, group, out)
    if grad.shape[:-1] != x.shape[:-1]:
        raise KernelError(
            f"The gradient and x must have the same tokens, got {tuple(grad.shape)} and {tuple(x.shape)}."
        )
    w_grad = grad.new_zeros(index.numel(), group)
    turned = grad.reshape(-1, out).t().contiguous(), x.reshape(-1, in_).t().contiguous()
    tokens, kept_all = turned[0].shape[1], index.numel()
    if tokens and kept_all:
        row, column = _where.get((index, pointers), lambda: _narrow(*operand_places(index, pointers, in_)))
        tile = {"GROUP": group, "LANES": LANES, "KEPT": max(1, _ROWS // group)}
        grid = (triton.cdiv(kept_all, tile["KEPT"]),)
        with torch.cuda.device_of(x):
            _weight_grad[grid](*turned, column, row, w_grad, kept_all, tokens, out, **tile, **OPTIONS)
    return w_grad


_where: DerivedCache[tuple[Tensor, Tensor]] = DerivedCache()


def _narrow(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    return row.to(torch.int32), column.to(torch.int32)
