"""Which columns a row group keeps, in few bits: the index of the vector layout in a file.

- N:M (also transposable): the position inside its group of m, `ceil(log2 m)` bits per kept column, bit-packed.
- everything else: one byte that names the code, then the smaller of
  - bitmap (0): one bit per block of columns and row group,
  - gaps (1): one byte per kept block: how many blocks were skipped since the last kept one; 255 skips 255 and keeps
    none. Rows follow one another, so no counts are needed; skips lead to less than 255 before the end, so that a short
    index cannot ask for a large weight.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import NM, NMG, AbstractPattern, Block, BundleError, Transposable
from .base import Shape
from .storage import pack_bits, stored_tensor, unpack_bits

_BITMAP, _GAPS = 0, 1
_SKIP = 255


def index_from_columns(shared: Tensor, pattern: AbstractPattern) -> Tensor:
    """Code the columns that row groups keep.

    Args:
        shared: `(row groups of the pattern, in)` bool, as regular as the pattern (N:M groups keep exactly n).
        pattern: the rule.

    Returns:
        1-D uint8.
    """
    shared = shared[:, :: pattern.width]
    if isinstance(pattern, NM | Transposable):
        bits = _position_bits(pattern.m)
        positions = shared.unflatten(1, (-1, pattern.m)).nonzero()[:, 2]
        return pack_bits((positions[:, None] >> torch.arange(bits)) & 1)
    gaps = _gaps_from_bits(shared)
    bitmap_bytes = -(-shared.numel() // 8)
    code, body = (_GAPS, gaps) if gaps.numel() < bitmap_bytes else (_BITMAP, pack_bits(shared))
    return torch.cat([torch.tensor([code], dtype=torch.uint8), body])


def columns_from_index(tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape) -> Tensor:
    """Read what `index_from_columns` wrote, trusting nothing.

    Returns:
        `(row groups of the pattern, in)` bool that obeys the pattern.

    Raises:
        BundleError: the index has another size than the pattern and shape ask for, or breaks the pattern.
    """
    out, in_ = shape
    groups = -(-out // pattern.group)
    if isinstance(pattern, NM | Transposable):
        units = _columns_from_positions(tensors, pattern, groups, in_ // pattern.width)
        return units.repeat_interleave(pattern.width, dim=1)
    width = pattern.width
    count = groups * (in_ // width)
    index = stored_tensor(tensors, "index", torch.uint8, (-1,))
    if index.numel() > 0 and int(index[0]) == _BITMAP and index.numel() == 1 + -(-count // 8):
        bits = unpack_bits(index[1:], (index.numel() - 1) * 8)
        if bool(bits[count:].any()):
            raise BundleError("The pad bits of a packed weight's index must be zero: the file is damaged.")
        bits = bits[:count]
    elif index.numel() > 0 and int(index[0]) == _GAPS and index.numel() <= 1 + count:
        bits = _bits_from_gaps(index[1:], count)
    else:
        raise BundleError(
            f"The index of a packed weight {shape} with {pattern} must be a bitmap of {-(-count // 8)} bytes or at "
            f"most {count} gaps behind a byte 0 or 1, got {index.numel()} bytes: the file is damaged. Write it again."
        )
    return _obeying(bits.view(groups, in_ // width), pattern, shape).repeat_interleave(width, dim=1)


def expected_bytes(pattern: AbstractPattern, shape: Shape, value_bits: int) -> float:
    """Bytes that values and index should take; the pattern's own bound except for n:m:g."""
    if not isinstance(pattern, NMG):
        return pattern.theoretical_bytes(shape, value_bits)
    return shape[0] * shape[1] * (value_bits * pattern.density + min(1.0, 8 * pattern.density)) / 8


def _position_bits(m: int) -> int:
    return math.ceil(math.log2(m))


def _columns_from_positions(tensors: Mapping[str, Tensor], pattern: NM | Transposable, groups: int, in_: int) -> Tensor:
    n, m = pattern.n, pattern.m
    bits = _position_bits(m)
    count = groups * (in_ // m) * n
    index = stored_tensor(tensors, "index", torch.uint8, (-(-count * bits // 8),))
    stored = unpack_bits(index, index.numel() * 8)
    if bool(stored[count * bits :].any()):
        raise BundleError("The pad bits of a packed weight's index must be zero: the file is damaged.")
    positions = torch.zeros(count, dtype=torch.int64)
    for place in range(bits):
        positions |= stored[place : count * bits : bits].to(torch.int64) << place
    positions = positions.view(-1, n)
    if bool((positions >= m).any()) or bool((positions.diff(dim=1) <= 0).any()):
        raise BundleError(
            f"The kept positions of {pattern} must rise and stay below {m} in every group of {m}: the file is damaged. "
            "Write it again."
        )
    columns = torch.zeros(groups * (in_ // m), m, dtype=torch.bool)
    return columns.scatter_(1, positions, True).view(groups, in_)


def _gaps_from_bits(bits: Tensor) -> Tensor:
    kept = bits.reshape(-1).nonzero()[:, 0]
    ends = torch.cat([kept.new_tensor([-1]), kept, kept.new_tensor([bits.numel()])])
    gaps = ends.diff() - 1
    last = (gaps // _SKIP + 1).cumsum(0)
    coded = torch.full((int(last[-1]),), _SKIP, dtype=torch.uint8)
    coded[last - 1] = (gaps % _SKIP).to(torch.uint8)
    return coded[:-1]  # what is left before the end needs no byte


def _bits_from_gaps(gaps: Tensor, count: int) -> Tensor:
    keeps = gaps != _SKIP
    ends = (gaps.to(torch.int64) + keeps.to(torch.int64)).cumsum(0)
    end = int(ends[-1]) if len(ends) else 0
    if not 0 <= count - end < _SKIP:
        raise BundleError(
            f"The gaps of a packed weight's index must lead to its last column ({count}), got {end}: the file is "
            "damaged. Write it again."
        )
    bits = torch.zeros(count, dtype=torch.bool)
    bits[ends[keeps] - 1] = True
    return bits


def _obeying(blocks: Tensor, pattern: AbstractPattern, shape: Shape) -> Tensor:
    """The block mask itself, once the mask it stands for is known to obey the pattern."""
    width = pattern.columns if isinstance(pattern, Block) else 1
    mask = blocks.repeat_interleave(width, dim=1).repeat_interleave(pattern.group, dim=0)[: shape[0]]
    broken = pattern.check_mask(mask)
    if broken:
        raise BundleError(f"The stored columns break {pattern}: {'; '.join(broken)}. Write the file again.")
    return blocks
