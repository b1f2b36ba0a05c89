"""n:m:g as STen stores it: columns sorted by pattern, one 16-bit number per n values, none per value.

Output rows lie in `blocks` of m, input columns in `chunks` of C * g with C = C(m, n). The C patterns stand in the order
of `core.grouped.kept_rows`, in which neighbours differ in one place. Tensors:

- `values` `(chunks, blocks, C, g, n)` in the value dtype: the values of g columns of every pattern, by column; zero in
  slots without a column and in rows that fill up the last block.
- `index` `(chunks, blocks, C, g, 1)` int16: the column inside its chunk; -1 in slots without a column, which stand at
  the end of their pattern and only exist in a last chunk that is short.

The file form holds the n values of each column in the order of the columns, and the number of its pattern in
`ceil(log2 C)` bits: less than the 16 bits of the slots.
"""

import math
from collections.abc import Mapping
from typing import cast, final

import torch
from torch import Tensor

from ..core import NMG, AbstractPattern, BundleError, LayoutError, require_finite
from ..core.grouped import assign_patterns, kept_rows, row_blocks
from .base import VALUE_DTYPES, AbstractLayout, PackedWeight, Shape, layouts
from .storage import pack_bits, stored_tensor, unpack_bits

MOST_CHUNK_COLUMNS = 32768
# A chunk may have this many times the weight's columns, so that a small file cannot ask for much memory.
_MOST_FILLING = 16


def unpack_operand(values: Tensor, index: Tensor, out: int, in_: int, m: int) -> Tensor:
    """The dense `(out, in)` weight of an operand, in the dtype of its values."""
    chosen, kept = _from_slots(values, index, in_)
    blocks, n = chosen.shape[0], values.shape[-1]
    rows = kept_rows(n, m).to(values.device, torch.int64)[chosen]
    dense = values.new_zeros(blocks, m, in_).scatter_(1, rows.transpose(1, 2), kept.transpose(1, 2))
    weight: Tensor = dense.flatten(0, 1)[:out].contiguous()
    return weight


def from_sten(values: Tensor, indices: Tensor, n: int, m: int, g: int, shape: Shape) -> PackedWeight:
    """A packed weight from tensors as STen stores them.

    Args:
        values: `(chunks, blocks, C(m, n), g, n)` floating point, patterns in STen's order; float64 becomes float32.
        indices: `(chunks, blocks, C(m, n), g, 1)` integers: columns inside their chunk. -1, or a column past the end of
            the weight, marks a slot without a column.
        n, m, g: the rule.
        shape: `(out, in)` of the weight; rows and columns beyond it only fill up the last block and chunk.

    Returns:
        The same weight in the layout `nmg`, with the columns of each pattern in ascending order.

    Raises:
        PatternError: n:m:g is no pattern.
        LayoutError: sizes or types are others than the rule and the shape ask for, a column is missing or stored twice,
            or a row beyond the weight is not zero.
        NumericError: a value is not finite.
    """
    rule = NMG(n, m, g)
    out, in_ = (int(size) for size in shape)
    reasons = _Sizes.misfit(rule, (out, in_))
    if reasons:
        raise LayoutError(f"The layout 'nmg' cannot store {rule} of shape {(out, in_)}: {'; '.join(reasons)}.")
    sizes = _Sizes(rule, (out, in_))
    slots = (sizes.chunks, sizes.blocks, sizes.patterns, g)
    if tuple(values.shape) != (*slots, n) or tuple(indices.shape) != (*slots, 1):
        raise LayoutError(
            f"{rule} of shape {(out, in_)} takes values {(*slots, n)} and indices {(*slots, 1)}, got "
            f"{tuple(values.shape)} and {tuple(indices.shape)}. Check n, m, g and the shape."
        )
    dtype = torch.float32 if values.dtype == torch.float64 else values.dtype
    if dtype not in VALUE_DTYPES or indices.dtype not in (torch.int16, torch.int32, torch.int64):
        raise LayoutError(
            f"Values are floating point and indices int16, int32 or int64, got {values.dtype} and {indices.dtype}."
        )
    column = indices.detach().to(torch.int64)
    chunk = torch.arange(sizes.chunks, device=column.device).view(-1, 1, 1, 1, 1)
    if bool((column < -1).any()) or bool((column >= rule.chunk).any()):
        raise LayoutError(
            f"Indices of {rule} lie between -1 and {rule.chunk - 1}, got {int(column.min())} to {int(column.max())}."
        )
    filled = (column >= 0) & (column + chunk * rule.chunk < in_)
    chosen, kept = _by_column(torch.where(filled, values.detach().to(dtype), 0), torch.where(filled, column, -1), in_)
    times = _times(torch.where(filled, column, -1), in_)
    if bool((times != 1).any()):
        block, place = (int(i) for i in (times != 1).nonzero()[0])
        raise LayoutError(
            f"Every column stands once in each row block, but column {place} stands {int(times[block, place])} times "
            f"in block {block}. Check that indices belong to these values."
        )
    require_finite(kept, "values of an n:m:g weight")
    if bool((_beyond(chosen, sizes, kept.device) & (kept != 0)).any()):
        raise LayoutError(f"The last row block holds values in rows beyond {out}. Check the shape.")
    return PackedWeight("nmg", rule, (out, in_), dtype, _to_slots(chosen, kept, rule))


@final
class _Sizes:
    """Counts of one weight."""

    def __init__(self, rule: NMG, shape: Shape) -> None:
        self.rule, self.out, self.in_ = rule, shape[0], shape[1]
        self.patterns = math.comb(rule.m, rule.n)
        self.blocks = -(-shape[0] // rule.m)
        self.chunks = -(-shape[1] // rule.chunk)
        self.bits = math.ceil(math.log2(self.patterns))

    @staticmethod
    def misfit(pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Reasons against the layout."""
        if not isinstance(pattern, NMG):
            return ["it stores n:m:g such as 3:6:4"]
        reasons = pattern.why_not(shape)
        if pattern.chunk > MOST_CHUNK_COLUMNS:
            reasons = [*reasons, f"a chunk has at most {MOST_CHUNK_COLUMNS} columns, this one {pattern.chunk}"]
        if pattern.chunk > _MOST_FILLING * shape[1]:
            reasons = [*reasons, f"a chunk has {pattern.chunk} columns, the weight only {shape[1]}"]
        return reasons


def _to_slots(chosen: Tensor, kept: Tensor, rule: NMG) -> dict[str, Tensor]:
    """Tensors of the layout.

    Args:
        chosen: `(blocks, in)` int64, the pattern of each column, each at most g times per chunk.
        kept: `(blocks, in, n)` its values.
        rule: the pattern.
    """
    blocks, in_ = chosen.shape
    patterns = rule.chunk // rule.g
    chunks = -(-in_ // rule.chunk)
    # Columns that fill up the last chunk come after all patterns.
    by_chunk = torch.nn.functional.pad(chosen, (0, chunks * rule.chunk - in_), value=patterns)
    by_chunk = by_chunk.view(blocks, chunks, rule.chunk).transpose(0, 1)
    ordered, column = by_chunk.sort(dim=-1, stable=True)
    counts = chosen.new_zeros(chunks, blocks, patterns + 1).scatter_add_(-1, ordered, torch.ones_like(ordered))
    rank = torch.arange(rule.chunk, device=chosen.device) - (counts.cumsum(-1) - counts).gather(-1, ordered)
    slot = torch.where(ordered < patterns, ordered * rule.g + rank, rule.chunk)
    # One slot more than there are takes what fills up.
    index = column.new_full((chunks, blocks, rule.chunk + 1), -1).scatter_(-1, slot, column)[..., : rule.chunk]
    start = torch.arange(chunks, device=chosen.device).view(-1, 1, 1) * rule.chunk
    row = torch.arange(blocks, device=chosen.device).view(1, -1, 1) * in_
    place = (row + start + index).clamp_min(0)
    values = kept.reshape(blocks * in_, rule.n)[place.reshape(-1)].view(chunks, blocks, rule.chunk, rule.n)
    values = torch.where(index[..., None] >= 0, values, 0)
    shape = (chunks, blocks, patterns, rule.g)
    return {"values": values.view(*shape, rule.n), "index": index.to(torch.int16).view(*shape, 1)}


def _from_slots(values: Tensor, index: Tensor, in_: int) -> tuple[Tensor, Tensor]:
    """Pattern `(blocks, in)` int64 and values `(blocks, in, n)` of every column."""
    return _by_column(values, index.to(torch.int64), in_)


def _by_column(values: Tensor, column: Tensor, in_: int) -> tuple[Tensor, Tensor]:
    chunks, blocks, patterns, g, n = values.shape
    where = _where(column, in_)
    number = torch.arange(patterns, device=values.device).view(1, 1, -1, 1).expand(chunks, blocks, -1, g)
    chosen = number.new_zeros(blocks * in_ + 1).scatter_(0, where, number.reshape(-1))[:-1]
    kept = values.new_zeros(blocks * in_ + 1, n)
    kept[where] = values.reshape(-1, n)
    return chosen.view(blocks, in_), kept[:-1].view(blocks, in_, n)


def _where(column: Tensor, in_: int) -> Tensor:
    """Place `block * in + column` of every slot; slots without a column go to one place past the end."""
    chunks, blocks, patterns, g, _ = column.shape
    chunk = torch.arange(chunks, device=column.device).view(-1, 1, 1, 1) * (patterns * g)
    block = torch.arange(blocks, device=column.device).view(1, -1, 1, 1) * in_
    slots = column[..., 0]
    return torch.where(slots >= 0, block + chunk + slots, blocks * in_).reshape(-1)


def _times(column: Tensor, in_: int) -> Tensor:
    """How often every column stands in each block, `(blocks, in)`."""
    blocks = column.shape[1]
    return torch.bincount(_where(column, in_), minlength=blocks * in_ + 1)[:-1].view(blocks, in_)


def _beyond(chosen: Tensor, sizes: _Sizes, device: torch.device) -> Tensor:
    """Which of the `(blocks, in, n)` values lie in rows that only fill up the last block."""
    rule = sizes.rule
    beyond = torch.zeros(*chosen.shape, rule.n, dtype=torch.bool, device=device)
    short = sizes.out % rule.m
    if short:
        beyond[-1] = kept_rows(rule.n, rule.m).to(device, torch.int64)[chosen[-1]] >= short
    return beyond


@final
@layouts.register("nmg")
class GroupedNMLayout(AbstractLayout):
    """n:m:g, columns sorted by pattern as STen stores them: what the n:m:g kernel multiplies with."""

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """n:m:g with chunks that are not much longer than the weight."""
        return _Sizes.misfit(pattern, shape)

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Find a pattern for every column that covers what it keeps, and sort columns by it."""
        rule = cast(NMG, pattern)
        kept = torch.where(mask, weight, 0).to(value_dtype)
        chosen = assign_patterns(row_blocks(mask, rule.m), rule.n, rule.m, rule.g).to(weight.device, torch.int64)
        rows = kept_rows(rule.n, rule.m).to(weight.device, torch.int64)[chosen]
        by_column = row_blocks(kept, rule.m).gather(1, rows.transpose(1, 2)).transpose(1, 2)
        shape = (weight.shape[0], weight.shape[1])
        return PackedWeight("nmg", rule, shape, value_dtype, _to_slots(chosen, by_column, rule))

    def unpack(self, packed: PackedWeight) -> Tensor:
        """Every value to its row and column."""
        rule = cast(NMG, packed.pattern)
        return unpack_operand(packed.tensors["values"], packed.tensors["index"], *packed.shape, rule.m)

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """Values in the order of the columns, pattern numbers bit-packed."""
        sizes = _Sizes(cast(NMG, packed.pattern), packed.shape)
        tensors = {name: tensor.cpu() for name, tensor in packed.tensors.items()}
        chosen, kept = _from_slots(tensors["values"], tensors["index"], sizes.in_)
        bits = (chosen.view(-1, 1) >> torch.arange(sizes.bits)) & 1
        return {"values": kept.reshape(-1).contiguous(), "index": pack_bits(bits)}

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Check numbers, counts and rows that only fill up, then sort columns by pattern."""
        reasons = self.why_not(pattern, shape)
        if reasons:
            raise BundleError(f"{pattern} cannot be the pattern of n:m:g values {shape}: {'; '.join(reasons)}.")
        rule = cast(NMG, pattern)
        sizes = _Sizes(rule, shape)
        count = sizes.blocks * sizes.in_
        values = stored_tensor(tensors, "values", value_dtype, (count * rule.n,))
        index = stored_tensor(tensors, "index", torch.uint8, (-(-count * sizes.bits // 8),))
        stored = unpack_bits(index, index.numel() * 8)
        if bool(stored[count * sizes.bits :].any()):
            raise BundleError("The pad bits of a packed weight's index must be zero: the file is damaged.")
        chosen = torch.zeros(count, dtype=torch.int64)
        for place in range(sizes.bits):
            chosen |= stored[place : count * sizes.bits : sizes.bits].to(torch.int64) << place
        chosen = chosen.view(sizes.blocks, sizes.in_)
        kept = values.view(sizes.blocks, sizes.in_, rule.n)
        if bool((chosen >= sizes.patterns).any()) or _most_used(chosen, sizes) > rule.g:
            raise BundleError(
                f"Each of the {sizes.patterns} patterns of {rule} serves at most {rule.g} columns of a chunk: the file "
                "is damaged. Write it again."
            )
        if bool((_beyond(chosen, sizes, kept.device) & (kept != 0)).any()):
            raise BundleError(f"A packed weight {shape} holds values in rows beyond its last: the file is damaged.")
        return PackedWeight("nmg", rule, shape, value_dtype, _to_slots(chosen, kept, rule))


def _most_used(chosen: Tensor, sizes: _Sizes) -> int:
    """The largest number of columns that one pattern serves in a tile."""
    chunk = torch.arange(sizes.in_) // sizes.rule.chunk
    block = torch.arange(sizes.blocks)[:, None] * sizes.chunks
    return int(torch.bincount(((block + chunk) * sizes.patterns + chosen).reshape(-1)).max())
