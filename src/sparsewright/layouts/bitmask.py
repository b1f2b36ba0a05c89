"""Bitmask: one bit per weight says kept or not, kept values follow in row order. A storage form for any pattern."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from ..core import AbstractPattern, BundleError
from .base import AbstractLayout, PackedWeight, Shape, layouts
from .storage import pack_bits, stored_tensor, unpack_bits


@final
@layouts.register("bitmask")
class Bitmask(AbstractLayout):
    """Tensors: `values` `(kept,)` row by row, `index` `(ceil(out * in / 8),)` uint8, lowest bit first."""

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Any pattern, wherever the pattern itself fits."""
        return pattern.why_not(shape)

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Gather kept values in row order."""
        tensors = {"values": weight[mask].to(value_dtype), "index": pack_bits(mask)}
        return PackedWeight("bitmask", pattern, (weight.shape[0], weight.shape[1]), value_dtype, tensors)

    def unpack(self, packed: PackedWeight) -> Tensor:
        """Scatter the values where bits are set."""
        values = packed.tensors["values"]
        mask = unpack_bits(packed.tensors["index"], packed.shape[0] * packed.shape[1])
        dense = values.new_zeros(packed.shape[0] * packed.shape[1])
        dense[mask] = values
        return dense.view(packed.shape)

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """The tensors as they are."""
        return {name: tensor.cpu().contiguous() for name, tensor in packed.tensors.items()}

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Check bytes, bit count and pattern, then take the tensors as they are."""
        count = shape[0] * shape[1]
        index = stored_tensor(tensors, "index", torch.uint8, (-(-count // 8),))
        values = stored_tensor(tensors, "values", value_dtype, (-1,))
        bits = unpack_bits(index, index.numel() * 8)
        if bool(bits[count:].any()) or int(bits.sum()) != values.numel():
            raise BundleError(
                f"The index of a bitmask must mark as many weights as there are values ({values.numel()}), got "
                f"{int(bits.sum())}: the file is damaged. Write it again."
            )
        broken = pattern.why_not(shape) or pattern.check_mask(bits[:count].view(shape))
        if broken:
            raise BundleError(f"The stored mask breaks {pattern}: {'; '.join(broken)}. Write the file again.")
        return PackedWeight("bitmask", pattern, shape, value_dtype, {"values": values, "index": index})

    def expected_bytes(self, pattern: AbstractPattern, shape: Shape, value_bits: int) -> float:
        """Kept values and one bit per weight."""
        return shape[0] * shape[1] * (value_bits * pattern.density + 1) / 8
