"""The structure of a packed weight seen by columns: which row groups keep a column, and where their values lie.

It holds no values, so it is made once per weight and never stale while values are trained. Row groups of the weight
are cut into blocks, so that dy of a block stays in the first-level cache.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import pad

from ...layouts.vector import operand_places

# Rows of a block: where much is kept, short blocks leave room for the weights that pass by; where little is kept, long
# ones spare sums their way to memory and back. Measured with benchmarks/bench_backward.py.
_ROWS_DENSE, _ROWS_SPARSE = 48, 96
_DENSE = 0.2


@final
@dataclass(frozen=True, slots=True)
class TransposedStructure:
    """What `Operand.input_grad_by_columns` reads.

    Attributes:
        index: `(kept,)` uint8, the row group inside its block.
        pointers: `(blocks, in + 1)` int32, offsets into `index` and `places`.
        places: `(kept,)` int32, rows of the weight's `values`.
        block_groups: row groups of a block.
    """

    index: Tensor
    pointers: Tensor
    places: Tensor
    block_groups: int


def transpose_structure(index: Tensor, pointers: Tensor, group: int, in_: int) -> TransposedStructure:
    """Structure by columns of the vector layout's `index` and `pointers`; time and scratch memory of a dense weight.

    Args:
        index: `(kept,)` uint8.
        pointers: `(blocks, groups + 1)` int32.
        group: rows of a row group.
        in_: columns of the weight.
    """
    groups = pointers.shape[1] - 1
    rows = _ROWS_DENSE if index.numel() > _DENSE * groups * in_ else _ROWS_SPARSE
    blocks = -(-groups // max(1, rows // group))
    block_groups = -(-groups // blocks)
    row, column = operand_places(index, pointers, in_)
    table = torch.full((blocks * block_groups, in_), -1, dtype=torch.int32)
    table[row, column] = torch.arange(index.numel(), dtype=torch.int32)
    by_column = table.view(blocks, block_groups, in_).transpose(1, 2).contiguous()
    kept = by_column >= 0
    ends = kept.sum(-1).reshape(-1).cumsum(0).view(blocks, in_)
    starts = pad(ends[:-1, -1], (1, 0))
    return TransposedStructure(
        kept.nonzero()[:, 2].to(torch.uint8),
        torch.cat([starts[:, None], ends], dim=1).to(torch.int32),
        by_column[kept],
        block_groups,
    )


# By the memory of the index, because autograd and compiled graphs hand over other tensor objects around it. A weak
# reference keeps the key from being given to another storage.
_structures: dict[tuple[int, ...], tuple[StorageWeakRef, TransposedStructure]] = {}


def structure_of(index: Tensor, pointers: Tensor, group: int, in_: int) -> TransposedStructure:
    """`transpose_structure` from the cache, or made now; entries leave after the weight's index has gone."""
    storage = index.untyped_storage()
    version = 0 if index.is_inference() else index._version
    key = (storage._cdata, int(index.storage_offset()), index.numel(), *pointers.shape, group, in_, version)
    found = _structures.get(key)
    if found is not None:
        return found[1]
    for old, (held, _) in list(_structures.items()):
        if held.expired():
            _structures.pop(old, None)
    made = transpose_structure(index, pointers, group, in_)
    _structures[key] = (StorageWeakRef(storage), made)
    return made
