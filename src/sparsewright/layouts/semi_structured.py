"""Semi-structured: 2:4 as NVIDIA's sparse tensor cores read it, through torch's own compression.

Rows are filled up with zeros to a multiple of 32 and columns to one of 64, which torch asks for. Tensors:

- `values` `(rows, columns / 2)` float16 or bfloat16: what each row keeps, from left to right.
- `meta` `(rows, columns / 16)` int16: the two kept positions of every 4, in the interleaved order of
  `torch.sparse.SparseSemiStructuredTensorCUTLASS`; made and read by torch's functions.

The file form holds true rows and columns only: values row by row and two bits per kept weight and row group.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from ..core import NM, AbstractPattern, BundleError, Transposable
from .base import AbstractLayout, PackedWeight, Shape, layouts
from .storage import stored_tensor
from .vector import shared_columns
from .vector_storage import columns_from_index, index_from_columns

ROWS, COLUMNS = 32, 64
"""What filled sizes are multiples of: torch's least sizes for 16-bit values."""


def unpack_operand(values: Tensor, meta: Tensor) -> Tensor:
    """The dense weight of an operand, filling included, in the dtype of its values."""
    dense: Tensor = sparse_semi_structured_to_dense_cutlass(values, meta)
    return dense


@final
@layouts.register("semi_structured")
class SemiStructured(AbstractLayout):
    """2:4 for sparse tensor cores: half the values and two bits for each."""

    value_dtypes = (torch.float16, torch.bfloat16)

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """2 of 4, by whatever row group, or transposable."""
        reasons = pattern.why_not(shape)
        if not isinstance(pattern, NM | Transposable) or (pattern.n, pattern.m, pattern.width) != (2, 4, 1):
            reasons = [*reasons, f"sparse tensor cores keep 2 of every 4 weights of a row, {pattern} is another rule"]
        return reasons

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Gather two values of every 4 and let torch code their positions."""
        out, in_ = weight.shape
        kept = torch.where(mask, weight, 0).to(value_dtype)
        tensors = _operand(kept, shared_columns(mask, pattern, 1))
        return PackedWeight("semi_structured", pattern, (out, in_), value_dtype, tensors)

    def unpack(self, packed: PackedWeight) -> Tensor:
        """torch's own unpacking, without the filling."""
        out, in_ = packed.shape
        return unpack_operand(packed.tensors["values"], packed.tensors["meta"])[:out, :in_].contiguous()

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """Values of true rows and columns; positions bit-packed once per row group of the pattern."""
        out, in_ = packed.shape
        values, meta = packed.tensors["values"].cpu(), packed.tensors["meta"].cpu()
        # Ones tell the kept places apart from kept zeros.
        shared = unpack_operand(torch.ones_like(values), meta)[:out, :in_] != 0
        index = index_from_columns(shared[:: packed.pattern.group], packed.pattern)
        return {"values": values[:out, : in_ // 2].reshape(-1).contiguous(), "index": index}

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Check sizes and positions, and rebuild the operand."""
        reasons = self.why_not(pattern, shape)
        if value_dtype not in self.value_dtypes:
            reasons = [*reasons, f"its values are {value_dtype}"]
        if reasons:
            raise BundleError(
                f"{pattern} cannot be the pattern of a semi-structured weight {shape}: {'; '.join(reasons)}."
            )
        out, in_ = shape
        values = stored_tensor(tensors, "values", value_dtype, (out * in_ // 2,))
        shared = columns_from_index(tensors, pattern, shape).repeat_interleave(pattern.group, dim=0)[:out]
        kept = values.new_zeros(shape)
        kept[shared] = values
        return PackedWeight("semi_structured", pattern, shape, value_dtype, _operand(kept, shared))


def _operand(kept: Tensor, shared: Tensor) -> dict[str, Tensor]:
    """Tensors of the layout from `(out, in)` values and the bool places, two of every 4, that hold them."""
    out, in_ = kept.shape
    rows, columns = -out % ROWS, -in_ % COLUMNS
    values = pad(kept[shared].view(out, in_ // 2), (0, columns // 2, 0, rows))
    # Coded from the places, not from the values: a kept zero stays kept.
    places = pad(shared, (0, columns, 0, rows)).to(torch.float16)
    _, meta = sparse_semi_structured_from_dense_cutlass(places)
    return {"values": values.contiguous(), "meta": meta}
