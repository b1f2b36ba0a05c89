"""Vector: the operand of the CPU kernels. Rows that share one choice of columns are stored side by side.

Input columns are cut into `blocks` of at most 256, output rows into groups of G = 1, 2, 4, 8 or 16 (the largest of
these that divides the pattern's group). Tensors:

- `values` `(kept, G)` in the value dtype: block after block, in it row group after row group, in it by column; the
  last row group is filled up with zero rows.
- `index` `(kept,)` uint8: the column inside the block.
- `pointers` `(blocks, groups + 1)` int32: offsets into `values` and `index`.

N:M groups that keep fewer than n are filled up with zeros, so every N:M weight is regular; blocks of several columns
are kept whole. The file form is `vector_storage`.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from ..core import NM, AbstractPattern, BundleError, Dense, LayoutError, Transposable, vector_lanes
from .base import AbstractLayout, PackedWeight, Shape, layouts
from .storage import stored_tensor
from .vector_storage import columns_from_index, expected_bytes, index_from_columns

GROUPS = (16, 8, 4, 2, 1)

# Columns of a block for the lanes of a vector and a row group, from this density on. Blocks keep a panel of x in the
# first-level cache beside the weights: on AVX2 24 tokens of 256 columns where 4 rows share a choice, 64 of 96 where
# none do; on AVX-512, whose vectors are twice as long, 64 of 128; on SSE, half as long, 32 of 192. Where little is
# kept, longer blocks win, since every block loads and stores its sums. Measured with benchmarks/bench_linear.py; AVX
# without AVX2 and SSE4.1 by forcing them.
_BLOCK_COLUMNS: dict[int, dict[int, tuple[tuple[float, int], ...]]] = {
    16: {
        1: ((0.15, 128), (0.0, 256)),
        2: ((0.15, 128), (0.0, 192)),
        4: ((0.3, 192), (0.0, 256)),
        8: ((0.3, 192), (0.0, 256)),
        16: ((0.3, 192), (0.0, 256)),
    },
    8: {
        1: ((0.35, 96), (0.15, 128), (0.0, 256)),
        2: ((0.35, 128), (0.0, 256)),
        4: ((0.0, 256),),
        8: ((0.0, 256),),
        16: ((0.0, 256),),
    },
    4: {
        1: ((0.35, 192), (0.0, 256)),
        2: ((0.0, 256),),
        4: ((0.0, 256),),
        8: ((0.0, 256),),
        16: ((0.0, 256),),
    },
}
# Single rows of a transposable pattern, which is there to be trained: with blocks so short that 128 tokens of one fit
# the first-level cache, large batches and dW gain; one token at a time loses.
_TRANSPOSABLE_COLUMNS = {16: 64}
_MOST_KEPT = 2**31 - 1


def row_group(pattern: AbstractPattern) -> int:
    """Rows G that share a choice in the operand: the largest kernel group that divides the pattern's."""
    return next(group for group in GROUPS if pattern.group % group == 0)


def block_count(in_: int, group: int, pattern: AbstractPattern) -> int:
    """Into how many blocks the input columns are cut for row groups of `group` under a pattern."""
    lanes, density = vector_lanes(), pattern.density
    columns = next(columns for least, columns in _BLOCK_COLUMNS[lanes][group] if density >= least)
    if isinstance(pattern, Transposable) and group == 1:
        columns = min(columns, _TRANSPOSABLE_COLUMNS.get(lanes, columns))
    return -(-in_ // columns)


def block_columns(in_: int, blocks: int) -> int:
    """Columns of every block but the last: equal shares, rounded up to a multiple of 8. At most 256."""
    share = -(-in_ // blocks)
    return -(-share // 8) * 8


def unpack_operand(values: Tensor, index: Tensor, pointers: Tensor, out: int, in_: int) -> Tensor:
    """The dense `(out, in)` weight of an operand, in the dtype of its values."""
    groups, group = pointers.shape[1] - 1, values.shape[1]
    row, column = operand_places(index, pointers, in_)
    dense = values.new_zeros(groups, in_, group)
    dense[row, column] = values
    weight: Tensor = dense.transpose(1, 2).reshape(groups * group, in_)[:out].contiguous()
    return weight


def operand_places(index: Tensor, pointers: Tensor, in_: int) -> tuple[Tensor, Tensor]:
    """Row group and column (int64) of every kept column, in the operand's order."""
    blocks, groups = pointers.shape[0], pointers.shape[1] - 1
    counts = pointers.to(torch.int64).diff(dim=1).reshape(-1)
    segment = torch.repeat_interleave(counts, output_size=index.numel())
    return segment % groups, index.to(torch.int64) + segment // groups * block_columns(in_, blocks)


def shared_columns(mask: Tensor, pattern: AbstractPattern, group: int) -> Tensor:
    """What row groups of an operand keep, as regular as the pattern.

    Args:
        mask: `(out, in)` bool.
        pattern: the rule that it obeys.
        group: rows of one group of the operand; divides the pattern's.

    Returns:
        `(ceil(out / group), in)` bool: columns that any row of the pattern's group keeps.
    """
    out = mask.shape[0]
    shared = _of_pattern(mask, pattern)
    return shared.repeat_interleave(pattern.group // group, dim=0)[: -(-out // group)]


def _of_pattern(mask: Tensor, pattern: AbstractPattern) -> Tensor:
    """`(ceil(out / pattern.group), in)` bool: columns that any row of the group keeps, filled up to regularity."""
    group = pattern.group
    mask = torch.nn.functional.pad(mask, (0, 0, 0, -mask.shape[0] % group))
    shared: Tensor = mask.unflatten(0, (-1, group)).any(1)
    units = shared.unflatten(1, (-1, pattern.width)).any(-1)
    if isinstance(pattern, NM | Transposable):
        grouped = units.unflatten(1, (-1, pattern.m))
        missing = pattern.n - grouped.sum(-1, keepdim=True)
        if bool(missing.any()):
            # The lowest free columns, so that the same weight always gives the same bytes.
            units = (grouped | ((~grouped).cumsum(-1) <= missing) & ~grouped).flatten(1)
    columns: Tensor = units.repeat_interleave(pattern.width, dim=1)
    return columns


def _operand(shared: Tensor, in_: int, group: int, pattern: AbstractPattern) -> tuple[Tensor, Tensor, Tensor]:
    """Index, pointers and the place `row group * in + column` (int64) of every kept column, in operand order."""
    groups = shared.shape[0]
    blocks = block_count(in_, group, pattern)
    columns = block_columns(in_, blocks)
    padded = torch.nn.functional.pad(shared, (0, blocks * columns - in_))
    blocked = padded.view(groups, blocks, columns).transpose(0, 1).contiguous()
    ends = blocked.sum(-1).reshape(-1).cumsum(0)
    kept = int(ends[-1])
    if kept > _MOST_KEPT:
        raise LayoutError(f"The vector layout counts up to {_MOST_KEPT} kept columns, got {kept}. Split the layer.")
    ends = ends.view(blocks, groups)
    starts = torch.nn.functional.pad(ends[:-1, -1], (1, 0))
    pointers = torch.cat([starts[:, None], ends], dim=1).to(torch.int32)
    block, row, column = blocked.nonzero(as_tuple=True)
    return column.to(torch.uint8), pointers, row * in_ + block * columns + column


def _gather(weight: Tensor, places: Tensor, group: int) -> Tensor:
    """`(kept, group)` values of the weight `(groups * group, in)` at the places."""
    by_group: Tensor = weight.unflatten(0, (-1, group)).transpose(1, 2).reshape(-1, group)
    return by_group.index_select(0, places)


@final
@layouts.register("vector")
class Vector(AbstractLayout):
    """Row groups side by side, columns in blocks: what the sparse kernels multiply with."""

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Any sparse pattern, wherever the pattern itself fits."""
        if isinstance(pattern, Dense):
            return ["nothing is removed, so there is nothing to skip"]
        return pattern.why_not(shape)

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Gather kept columns block by block; linear time."""
        out, in_ = weight.shape
        group = row_group(pattern)
        shared = shared_columns(mask, pattern, group)
        index, pointers, places = _operand(shared, in_, group, pattern)
        kept = torch.where(mask, weight, 0).to(value_dtype)
        kept = torch.nn.functional.pad(kept, (0, 0, 0, -out % group))
        tensors = {"values": _gather(kept, places, group), "index": index, "pointers": pointers}
        return PackedWeight("vector", pattern, (out, in_), value_dtype, tensors)

    def unpack(self, packed: PackedWeight) -> Tensor:
        """Scatter the values into zeros."""
        tensors = packed.tensors
        return unpack_operand(tensors["values"], tensors["index"], tensors["pointers"], *packed.shape)

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """Values row group by row group without filling rows; columns bit-packed once per group of the pattern."""
        out, in_ = packed.shape
        tensors = {name: tensor.cpu() for name, tensor in packed.tensors.items()}
        row, column = operand_places(tensors["index"], tensors["pointers"], in_)
        values, group = tensors["values"], tensors["values"].shape[1]
        shared = torch.zeros(tensors["pointers"].shape[1] - 1, in_, dtype=torch.bool)
        shared[row, column] = True
        # Where each kept column goes when rows come first: its rank among the set places.
        by_rows = torch.empty_like(values)
        by_rows[shared.view(-1).cumsum(0)[row * in_ + column] - 1] = values
        short = out % group
        if short:
            last = int(shared[-1].sum())
            whole, rest = by_rows[: len(by_rows) - last], by_rows[len(by_rows) - last :]
            by_rows = torch.cat([whole.reshape(-1), rest[:, :short].reshape(-1)])
        index = index_from_columns(shared[:: packed.pattern.group // group], packed.pattern)
        return {"values": by_rows.reshape(-1), "index": index}

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Read the columns, check them against the pattern, and rebuild the operand."""
        reasons = self.why_not(pattern, shape)
        if reasons:
            raise BundleError(f"{pattern} cannot be the pattern of a packed weight {shape}: {'; '.join(reasons)}.")
        out, in_ = shape
        group = row_group(pattern)
        groups = -(-out // group)
        if isinstance(pattern, NM | Transposable):
            # Known before anything is allocated for the index.
            stored_tensor(tensors, "values", value_dtype, (out * (in_ // pattern.m) * pattern.n,))
        shared = columns_from_index(tensors, pattern, shape)
        shared = shared.repeat_interleave(pattern.group // group, dim=0)[:groups]
        last = int(shared[-1].sum())
        kept = int(shared.sum())
        short = out % group or group
        values = stored_tensor(tensors, "values", value_dtype, ((kept - last) * group + last * short,))
        whole = values[: (kept - last) * group].view(-1, group)
        rest = values[(kept - last) * group :].view(last, short)
        by_rows = torch.cat([whole, torch.nn.functional.pad(rest, (0, group - short))])
        index, pointers, places = _operand(shared, in_, group, pattern)
        ranks = shared.view(-1).cumsum(0) - 1
        operand = {"values": by_rows[ranks[places]], "index": index, "pointers": pointers}
        return PackedWeight("vector", pattern, shape, value_dtype, operand)

    def expected_bytes(self, pattern: AbstractPattern, shape: Shape, value_bits: int) -> float:
        """The pattern's own bound, but for n:m:g, whose columns are coded as those of any unstructured mask."""
        return expected_bytes(pattern, shape, value_bits)
