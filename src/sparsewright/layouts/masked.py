"""Masked: the dense weight with zeros in it. Saves nothing, runs everywhere; the report counts it as dense."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from ..core import AbstractPattern, BundleError
from .base import AbstractLayout, PackedWeight, Shape, layouts
from .storage import stored_tensor


@final
@layouts.register("masked")
class Masked(AbstractLayout):
    """Tensors: `values` `(out, in)`."""

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Any pattern, wherever the pattern itself fits."""
        return pattern.why_not(shape)

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Zero what is not kept."""
        values = torch.where(mask, weight, 0).to(value_dtype)
        return PackedWeight("masked", pattern, (weight.shape[0], weight.shape[1]), value_dtype, {"values": values})

    def unpack(self, packed: PackedWeight) -> Tensor:
        """A copy: the packed weight stays as it is whatever the caller does."""
        return packed.tensors["values"].clone()

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """The dense values; the index is empty."""
        return {
            "values": packed.tensors["values"].cpu().contiguous(),
            "index": torch.empty(0, dtype=torch.uint8),
        }

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Check that the values obey the pattern."""
        stored_tensor(tensors, "index", torch.uint8, (0,))
        values = stored_tensor(tensors, "values", value_dtype, shape)
        broken = pattern.why_not(shape) or pattern.check_mask(values != 0)
        if broken:
            raise BundleError(f"The stored weight breaks {pattern}: {'; '.join(broken)}. Write the file again.")
        return PackedWeight("masked", pattern, shape, value_dtype, {"values": values})

    def expected_bytes(self, pattern: AbstractPattern, shape: Shape, value_bits: int) -> float:
        """All values."""
        return shape[0] * shape[1] * value_bits / 8
