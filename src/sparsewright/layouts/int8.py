"""Int8: one byte per kept weight, one scale per output row; the operand of the int8 kernels, dense rows included.

Output rows lie in groups of G = 2, 4, 8 or 16 that share one choice of columns (a dense weight: 16). The kept columns
of a group lie in fours, "quads", because one instruction multiplies four bytes; the last quad repeats its last column
with zero weights. Tensors:

- `values` `(quads, G, 4)` int8: round(weight / scale), from -127 to 127, group after group.
- `columns` `(quads, 4)` int16 holding unsigned numbers: the input columns of each quad; `(0, 4)` for a dense weight,
  whose quads hold all columns in order.
- `pointers` `(groups + 1)` int32: first quad of each group.
- `scale` `(groups * G)` float32: largest kept magnitude of the row / 127.
- `sums` `(groups * G)` int32: sum of each row's values, which undoes the zero point of the inputs.

The file form holds values row group by row group without any filling, the index of the pattern, and the scales.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from ..core import AbstractPattern, BundleError, Dense
from .base import AbstractLayout, PackedWeight, Shape, layouts
from .rounding import check_bytes, check_scale, quantise
from .storage import stored_tensor
from .vector import shared_columns
from .vector_storage import columns_from_index, expected_bytes, index_from_columns

GROUPS = (16, 8, 4, 2)
MOST_COLUMNS = 65536
_DENSE_GROUP = 16


def row_group(pattern: AbstractPattern) -> int | None:
    """Rows G that share a choice in the operand; None where the kernels know no group that divides the pattern's."""
    if isinstance(pattern, Dense):
        return _DENSE_GROUP
    return next((group for group in GROUPS if pattern.group % group == 0), None)


def unpack_operand(values: Tensor, columns: Tensor, pointers: Tensor, scale: Tensor, out: int, in_: int) -> Tensor:
    """The dense `(out, in)` float32 weight of an operand."""
    groups, group = pointers.shape[0] - 1, values.shape[1]
    slots = values.transpose(1, 2).reshape(-1, group)
    if columns.numel() == 0 and slots.numel():
        dense = slots.view(groups, -1, group)[:, :in_]
    else:
        row, column, kept = _places(columns, pointers)
        dense = values.new_zeros(groups, in_, group)
        dense[row[kept], column[kept]] = slots[kept]
    weight: Tensor = dense.transpose(1, 2).reshape(groups * group, in_)[:out].to(torch.float32) * scale[:out, None]
    return weight


def _places(columns: Tensor, pointers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row group and column of every slot, and whether it is a kept column (not a filling one)."""
    groups = pointers.shape[0] - 1
    slots = 4 * pointers.to(torch.int64)
    row = torch.repeat_interleave(torch.arange(groups, device=columns.device), slots.diff())
    column = columns.reshape(-1).to(torch.int64) & 0xFFFF
    # Columns rise within a group, and filling repeats the last.
    kept = torch.ones_like(column, dtype=torch.bool)
    kept[1:] = (column[1:] != column[:-1]) | (row[1:] != row[:-1])
    return row, column, kept


def _operand(rounded: Tensor, scale: Tensor, shared: Tensor | None, group: int) -> dict[str, Tensor]:
    """Tensors of the layout.

    Args:
        rounded: `(groups * G, in)` int8, zero where nothing is kept.
        scale: `(out,)` float32.
        shared: `(groups, in)` bool, columns that each group keeps; None: all of them.
        group: G.
    """
    rows, in_ = rounded.shape
    groups = rows // group
    by_group = rounded.view(groups, group, in_)
    if shared is None:
        quads = -(-in_ // 4)
        padded = torch.nn.functional.pad(by_group, (0, 4 * quads - in_))
        values = padded.view(groups, group, quads, 4).transpose(1, 2).reshape(-1, group, 4)
        columns = torch.empty(0, 4, dtype=torch.int16)
        pointers = torch.arange(groups + 1, dtype=torch.int32) * quads
    else:
        counts = shared.sum(1)
        first = torch.nn.functional.pad((-(-counts // 4)).cumsum(0), (1, 0))
        total = int(first[-1])
        row, column = shared.nonzero(as_tuple=True)
        before = torch.nn.functional.pad(counts.cumsum(0), (1, 0))[:-1]
        place = 4 * first[row] + torch.arange(row.numel()) - before[row]
        last = torch.where(counts > 0, column[(before + counts - 1).clamp_min(0)] if row.numel() else 0, 0)
        chosen = torch.repeat_interleave(last, 4 * first.diff())
        chosen[place] = column
        slots = rounded.new_zeros(4 * total, group)
        slots[place] = by_group.transpose(1, 2)[row, column]
        values = slots.view(total, 4, group).transpose(1, 2)
        columns = chosen.to(torch.int16).view(total, 4)
        pointers = first.to(torch.int32)
    scale = torch.nn.functional.pad(scale, (0, rows - scale.numel()), value=1.0)
    return {
        "values": values.contiguous(),
        "columns": columns.contiguous(),
        "pointers": pointers,
        "scale": scale,
        "sums": rounded.sum(1, dtype=torch.int32),
    }


@final
@layouts.register("int8")
class Int8(AbstractLayout):
    """Bytes in fours with a scale per row: what the int8 kernels multiply with."""

    value_dtypes = (torch.int8,)

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Dense weights and patterns whose rows share a choice in groups of 2, 4, 8 or 16."""
        reasons = pattern.why_not(shape)
        if row_group(pattern) is None:
            reasons = [*reasons, f"int8 rows share a choice in groups of 2, 4, 8 or 16, {pattern} in {pattern.group}"]
        if shape[1] > MOST_COLUMNS:
            reasons = [*reasons, f"int8 weights have at most {MOST_COLUMNS} columns, this one {shape[1]}"]
        return reasons

    def rounded(self, weight: Tensor, value_dtype: torch.dtype) -> Tensor:
        """To the nearest of 255 steps per row."""
        values, scale = quantise(weight)
        return values.to(torch.float32) * scale[:, None]

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Round what is kept and lay it in quads; linear time."""
        out, in_ = weight.shape
        group = row_group(pattern)
        assert group is not None
        rounded, scale = quantise(torch.where(mask, weight, 0))
        rounded = torch.nn.functional.pad(rounded, (0, 0, 0, -out % group))
        shared = None if isinstance(pattern, Dense) else shared_columns(mask, pattern, group)
        return PackedWeight("int8", pattern, (out, in_), torch.int8, _operand(rounded, scale, shared, group))

    def unpack(self, packed: PackedWeight) -> Tensor:
        """Bytes times scales, float32."""
        of = packed.tensors
        if packed.device.type == "meta":
            # Which slots are kept stands in the columns, and these have no content there.
            return torch.empty(packed.shape, dtype=torch.float32, device="meta")
        return unpack_operand(of["values"], of["columns"], of["pointers"], of["scale"], *packed.shape)

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """Values without filling, row group by row group; columns bit-packed once per group of the pattern."""
        out, in_ = packed.shape
        tensors = {name: tensor.cpu() for name, tensor in packed.tensors.items()}
        group = tensors["values"].shape[1]
        slots = tensors["values"].transpose(1, 2).reshape(-1, group)
        scale = tensors["scale"][:out].clone()
        short = out % group
        if isinstance(packed.pattern, Dense):
            groups = tensors["pointers"].shape[0] - 1
            rows = slots.view(groups, -1, group)[:, :in_].transpose(1, 2).reshape(groups * group, in_)[:out]
            return {"values": rows.reshape(-1), "index": torch.empty(0, dtype=torch.uint8), "scale": scale}
        row, column, kept = _places(tensors["columns"], tensors["pointers"])
        shared = torch.zeros(tensors["pointers"].shape[0] - 1, in_, dtype=torch.bool)
        shared[row[kept], column[kept]] = True
        values = slots[kept]
        if short:
            last = int(shared[-1].sum())
            values = torch.cat(
                [values[: len(values) - last].reshape(-1), values[len(values) - last :, :short].reshape(-1)]
            )
        index = index_from_columns(shared[:: packed.pattern.group // group], packed.pattern)
        return {"values": values.reshape(-1).contiguous(), "index": index, "scale": scale}

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Read the columns, check them against the pattern, and rebuild the operand."""
        reasons = self.why_not(pattern, shape)
        if value_dtype != torch.int8:
            reasons = [*reasons, f"its values are {value_dtype}"]
        if reasons:
            raise BundleError(f"{pattern} cannot be the pattern of int8 values {shape}: {'; '.join(reasons)}.")
        out, in_ = shape
        group = row_group(pattern)
        assert group is not None
        scale = stored_tensor(tensors, "scale", torch.float32, (out,))
        check_scale(scale)
        if isinstance(pattern, Dense):
            stored_tensor(tensors, "index", torch.uint8, (0,))
            rounded = stored_tensor(tensors, "values", torch.int8, (out * in_,)).view(out, in_)
            shared = None
        else:
            shared = columns_from_index(tensors, pattern, shape)
            shared = shared.repeat_interleave(pattern.group // group, dim=0)[: -(-out // group)]
            rounded = _rows_of(tensors, shared, out, group)
        rounded = torch.nn.functional.pad(rounded, (0, 0, 0, -out % group))
        check_bytes(rounded)
        return PackedWeight("int8", pattern, shape, torch.int8, _operand(rounded, scale, shared, group))

    def expected_bytes(self, pattern: AbstractPattern, shape: Shape, value_bits: int) -> float:
        """The pattern's own bound, and four bytes per row for its scale."""
        return expected_bytes(pattern, shape, value_bits) + 4 * shape[0]


def _rows_of(tensors: Mapping[str, Tensor], shared: Tensor, out: int, group: int) -> Tensor:
    """`(out, in)` int8 from the file's values."""
    last, kept, short = int(shared[-1].sum()), int(shared.sum()), out % group or group
    values = stored_tensor(tensors, "values", torch.int8, ((kept - last) * group + last * short,))
    whole = values[: (kept - last) * group].view(-1, group)
    rest = torch.nn.functional.pad(values[(kept - last) * group :].view(last, short), (0, group - short))
    dense = values.new_zeros(shared.shape[0], shared.shape[1], group)
    dense[shared] = torch.cat([whole, rest])
    return dense.transpose(1, 2).reshape(-1, shared.shape[1])[:out]
