"""Whether packed tensors are what the native kernels take them for: the kernels get addresses and trust them.

Files are checked by the layouts when they are read, but tensors also arrive as buffers of a module, as arguments of the
registered operators, or were written to since. Places are looked at once per memory and version.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core import KernelError
from ...layouts.vector import block_columns
from .derived import DerivedCache

_GROUPS = (1, 2, 4, 8, 16)
_INT8_GROUPS = (2, 4, 8, 16)
_VALUES = (torch.float32, torch.float16, torch.int8)

# For each set of tensors the sizes that they were found right for.
_right: DerivedCache[set[Any]] = DerivedCache()


def check_vector(
    values: Tensor | None,
    index: Tensor,
    pointers: Tensor,
    scale: Tensor | None,
    out: int,
    in_: int,
    group: int,
    kept_per_8: int = 0,
) -> None:
    """Check an operand of the layout `vector` or `int8_weights`.

    Args:
        values: `(kept, group)`, or None where a call reads none.
        index: `(kept,)` uint8, column inside its block.
        pointers: `(blocks, groups + 1)` int32.
        scale: `(groups * group)` float32, or None.
        out, in_: shape of the weight.
        group: rows that share their columns.
        kept_per_8: what `operand.kept_per_8` promises of every row.

    Raises:
        KernelError: they are not the operand of such a weight.
    """
    with_shapes = [("index", index, torch.uint8, 1), ("pointers", pointers, torch.int32, 2)]
    if scale is not None:
        with_shapes.append(("scale", scale, torch.float32, 1))
    _check_kinds(with_shapes)
    if values is not None:
        if values.dtype not in _VALUES or values.dim() != 2 or not values.is_cpu:
            raise _wrong(f"values {tuple(values.shape)} of {values.dtype} on {values.device}")
        if values.shape[0] != index.numel() or values.shape[1] != group:
            raise _wrong(f"values {tuple(values.shape)} for {index.numel()} kept columns in groups of {group} rows")
    blocks, groups = pointers.shape[0], pointers.shape[1] - 1
    if group not in _GROUPS or groups * group < out or (groups - 1) * group >= out:
        raise KernelError(f"The operand has {groups} groups of {group} rows; it is not the operand of {out} outputs.")
    width = block_columns(in_, blocks) if blocks and in_ else 0
    if not 0 < width <= 256 or (blocks - 1) * width >= in_ or blocks * width < in_:
        raise _wrong(f"{blocks} blocks for {in_} columns")
    if scale is not None and scale.numel() != groups * group:
        raise _wrong(f"{scale.numel()} scales for {groups * group} rows")

    def places() -> None:
        bounds = pointers.reshape(-1).to(torch.int64)
        _check_rising(bounds, index.numel())
        if not torch.equal(pointers[1:, 0], pointers[:-1, -1]):
            raise _wrong("pointers of a block that do not begin where those of the block before end")
        # Rows of the table: blocks. Every index lies inside its block, the last of which may be narrower.
        of_block = torch.repeat_interleave(torch.arange(blocks), pointers[:, -1].long() - pointers[:, 0].long())
        most = torch.full((blocks,), width)
        most[-1] = in_ - (blocks - 1) * width
        if bool((index.to(torch.int64) >= most[of_block]).any()):
            raise _wrong("an index past the columns of its block")
        if kept_per_8:
            counts = pointers.diff(dim=1)
            wanted = most * kept_per_8 // 8
            even = bool((counts == wanted[:, None]).all())
            order = torch.cat([torch.arange(int(count)).repeat(groups) for count in wanted]) // kept_per_8
            if group != 1 or not even or not torch.equal(index.to(torch.int64) // 8, order):
                raise _wrong(f"rows that do not keep {kept_per_8} of every 8 columns")

    _once((index, pointers), ("vector", out, in_, group, kept_per_8), places)


def check_int8(
    values: Tensor, columns: Tensor, pointers: Tensor, scale: Tensor, sums: Tensor, out: int, in_: int
) -> None:
    """Check an operand of the layout `int8` (see `layouts.int8` for its tensors) for a weight `(out, in_)`.

    Raises:
        KernelError: they are not the operand of such a weight.
    """
    _check_kinds(
        [
            ("values", values, torch.int8, 3),
            ("columns", columns, torch.int16, 2),
            ("pointers", pointers, torch.int32, 1),
            ("scale", scale, torch.float32, 1),
            ("sums", sums, torch.int32, 1),
        ]
    )
    quads, group, four = values.shape
    groups, dense = pointers.numel() - 1, columns.shape[0] == 0 and quads > 0
    if (
        group not in _INT8_GROUPS
        or groups * group < out
        or (groups - 1) * group >= out
        or scale.numel() != sums.numel()
    ):
        raise KernelError(
            f"The int8 operand has {groups} groups of {group} rows and {scale.numel()} scales; it is not the operand "
            f"of {out} outputs."
        )
    if four != 4 or columns.shape[1] != 4 or scale.numel() != groups * group:
        raise _wrong(f"values {tuple(values.shape)}, columns {tuple(columns.shape)} and {scale.numel()} scales")
    if (dense and group != 16) or (not dense and columns.shape[0] != quads):
        raise _wrong(f"{columns.shape[0]} fours of columns for {quads} of values in groups of {group} rows")

    def places() -> None:
        _check_rising(pointers.to(torch.int64), quads)
        per_group = pointers.diff().long()
        if dense and bool((per_group != -(-in_ // 4)).any()):
            raise _wrong(f"dense rows of other than {in_} columns")
        if columns.numel() and int((columns.to(torch.int64) & 0xFFFF).max()) >= in_:
            raise _wrong(f"a column past the {in_} of the weight")
        if values.numel() and int(values.min()) < -127:
            raise _wrong("the value -128; bytes go from -127 to 127")
        row = torch.repeat_interleave(torch.arange(groups), per_group)
        of_rows = torch.zeros(groups, group, dtype=torch.int32).index_add_(0, row, values.sum(2, dtype=torch.int32))
        if not torch.equal(of_rows.view(-1), sums):
            raise _wrong("sums that are not those of its values")

    _once((values, columns, pointers, sums), ("int8", out, in_), places)


def check_nmg(values: Tensor, index: Tensor, out: int, in_: int, m: int) -> None:
    """Check an operand of the layout `nmg` (see `layouts.nmg` for its tensors) for a weight `(out, in_)`.

    Raises:
        KernelError: they are not the operand of such a weight.
    """
    sizes = tuple(values.shape)
    fits = len(sizes) == 5 and min(sizes) > 0 and tuple(index.shape) == (*sizes[:4], 1) and index.dtype == torch.int16
    if fits:
        chunks, blocks, patterns, g, n = sizes
        fits = -(-out // m) == blocks and -(-in_ // (patterns * g)) == chunks and math.comb(m, n) == patterns
    if not fits or values.dtype not in (torch.float32, torch.float16) or not values.is_cpu or not index.is_cpu:
        raise KernelError(
            f"The n:m:g operand has values {sizes} of {values.dtype} and index {tuple(index.shape)} of {index.dtype} "
            f"on {values.device}; it is not the operand of {out} outputs in blocks of {m} and {in_} inputs."
        )

    def places() -> None:
        full, last = index[:-1], index[-1]
        rest = in_ - (chunks - 1) * patterns * g
        outside = [last.min() < -1, last.max() >= rest]
        if full.numel():
            outside += [full.min() < 0, full.max() >= patterns * g]
        if any(bool(each) for each in outside):
            raise _wrong("a column outside its chunk")
        if rest == patterns * g and bool(last.min() < 0):
            raise _wrong("a slot without a column in a full chunk")

    _once((index,), ("nmg", sizes, out, in_, m), places)


def _check_kinds(planes: list[tuple[str, Tensor, torch.dtype, int]]) -> None:
    for name, plane, dtype, dimensions in planes:
        if plane.dtype != dtype or plane.dim() != dimensions or not plane.is_cpu:
            raise _wrong(f"{name} {tuple(plane.shape)} of {plane.dtype} on {plane.device}")


def _check_rising(bounds: Tensor, end: int) -> None:
    if int(bounds[0]) != 0 or int(bounds[-1]) != end or bool((bounds.diff() < 0).any()):
        raise _wrong(f"pointers that do not rise from 0 to {end}")


def _once(planes: tuple[Tensor, ...], sizes: tuple[Any, ...], look: Callable[[], None]) -> None:
    right = _right.get(planes, set)
    if sizes not in right:
        look()
        right.add(sizes)


def _wrong(what: str) -> KernelError:
    return KernelError(
        f"A packed weight does not hold together: it has {what}. Its tensors were changed or belong to another "
        "weight; pack the weight again, or load it again."
    )
