"""Strips: four rows of a weight in which two of every four rows and columns are kept (`2:4t`).

Each column of such a strip is kept by exactly two of its rows, so the kernels read a vector of x once for two of them,
where rows of a plain 2:4 weight read it once each. What the pattern gives forward it gives backward too: the transposed
weight has the same form. `strip_lane.hpp` tells how the kernels read what is made here, once per weight.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ...core import instruction_set
from ...layouts.vector import block_columns, operand_places
from .derived import DerivedCache

# Where they win: processors with registers for four rows of sums of many tokens. Measured with
# benchmarks/bench_linear.py; on AVX2 single rows are as fast.
_SETS = ("avx512_vnni", "avx512")
# Rows of W in a block of the transposed strips.
_BLOCK_ROWS = 96
# The run that a column belongs to, by the bits of the rows that keep it.
_RUN_OF_BITS = {0b0011: 0, 0b0101: 1, 0b0110: 2, 0b1001: 3, 0b1010: 4, 0b1100: 5}
_FIRST, _SECOND = (0, 0, 1, 0, 1, 2), (1, 2, 2, 3, 3, 3)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Strips:
    """What the strip kernels read beside values and pointers.

    Attributes:
        records: int32, one per column of every strip and block: the column in the lowest byte, above it the places of
            its two values within their rows (none where the strips are of the transposed weight).
        counts: int16, for every block and strip the lengths of its six runs.
        blocks, block_columns: how the columns are cut.
    """

    records: Tensor
    counts: Tensor
    blocks: int
    block_columns: int


_strips: DerivedCache[Strips | None] = DerivedCache()
_turned: DerivedCache[Strips] = DerivedCache()


def strips_of(index: Tensor, pointers: Tensor, out: int, in_: int) -> Strips | None:
    """Strips of the vector layout's single rows, or None where the weight has none; kept as long as the tensors live.

    Args:
        index: `(kept,)` uint8, column inside its block.
        pointers: `(blocks, out + 1)` int32.
        out, in_: shape of the weight.
    """
    if 2 * index.numel() != out * in_ or out % 4 or in_ % 4 or instruction_set() not in _SETS:
        return None
    blocks = pointers.shape[0]
    columns = block_columns(in_, blocks)

    def make() -> Strips | None:
        mask = _mask(index, pointers, out, in_)
        tiles = mask.view(out // 4, 4, in_ // 4, 4).to(torch.uint8)
        if bool((tiles.sum(1) != 2).any()) or bool((tiles.sum(3) != 2).any()):
            return None
        return _sorted(mask, blocks, columns, with_places=True)

    return _strips.get((index, pointers), make)


def turned_strips_of(index: Tensor, pointers: Tensor, out: int, in_: int) -> Strips:
    """The same of the transposed weight; only for a weight that has strips."""
    blocks = -(-out // _BLOCK_ROWS)

    def make() -> Strips:
        mask = _mask(index, pointers, out, in_).T.contiguous()
        return _sorted(mask, blocks, block_columns(out, blocks), with_places=False)

    return _turned.get((index, pointers), make)


def _mask(index: Tensor, pointers: Tensor, out: int, in_: int) -> Tensor:
    mask = torch.zeros(out, in_, dtype=torch.bool)
    mask[operand_places(index, pointers, in_)] = True
    return mask


def _sorted(mask: Tensor, blocks: int, columns: int, with_places: bool) -> Strips:
    """Columns of every strip and block sorted by the two rows that keep them."""
    strips = mask.shape[0] // 4
    run_of_bits = torch.full((16,), -1)
    run_of_bits[list(_RUN_OF_BITS)] = torch.tensor(list(_RUN_OF_BITS.values()))
    weights = torch.tensor([1, 2, 4, 8])[:, None]
    records, counts = [], []
    for block in range(blocks):
        part = mask[:, block * columns : (block + 1) * columns].view(strips, 4, -1)
        runs = run_of_bits[(part * weights).sum(1)]
        record = torch.arange(part.shape[2]).expand(strips, -1)
        if with_places:
            place = part.cumsum(2) - 1
            for shift, row_of_run in ((8, _FIRST), (16, _SECOND)):
                row = torch.tensor(row_of_run)[runs]
                record = record | place.gather(1, row[:, None]).squeeze(1) << shift
        order = runs.argsort(dim=1, stable=True)
        records.append(record.gather(1, order).to(torch.int32).flatten())
        counts.append(torch.nn.functional.one_hot(runs, 6).sum(1).to(torch.int16).flatten())
    return Strips(torch.cat(records), torch.cat(counts), blocks, columns)
