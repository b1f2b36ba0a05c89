"""Int8 weights under float32 activations: the operand of the vector layout, a byte per kept weight, a scale per row.

Nothing of x is rounded, so only the weights lose; any row group, any pattern. The layout `int8` also rounds x and is
faster from two tokens on. Tensors: `values` `(kept, G)` int8, `index` and `pointers` as in `vector`, and `scale`
`(groups * G)` float32, 1 for filling rows. The file form is that of `vector`, with a scale for each row.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..core import AbstractPattern, BundleError
from .base import AbstractLayout, PackedWeight, Shape, layouts
from .rounding import check_bytes, check_scale, quantise
from .storage import stored_tensor
from .vector import Vector
from .vector_storage import expected_bytes

_vector = Vector()


def _with_scale(packed: PackedWeight, scale: Tensor) -> PackedWeight:
    """A vector weight of bytes with `(out,)` scales, padded to whole row groups."""
    tensors = packed.tensors
    rows = (tensors["pointers"].shape[1] - 1) * tensors["values"].shape[1]
    padded = torch.nn.functional.pad(scale, (0, rows - scale.numel()), value=1.0)
    return replace(packed, layout="int8_weights", value_dtype=torch.int8, tensors={**tensors, "scale": padded})


def _without_scale(packed: PackedWeight) -> PackedWeight:
    tensors = {name: tensor for name, tensor in packed.tensors.items() if name != "scale"}
    return replace(packed, layout="vector", tensors=tensors)


@final
@layouts.register("int8_weights")
class Int8Weights(AbstractLayout):
    """Bytes with a scale per row, multiplied with float32 activations."""

    value_dtypes = (torch.int8,)

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Any sparse pattern, wherever the pattern itself fits."""
        return _vector.why_not(pattern, shape)

    def rounded(self, weight: Tensor, value_dtype: torch.dtype) -> Tensor:
        """To the nearest of 255 steps per row."""
        values, scale = quantise(weight)
        return values.to(torch.float32) * scale[:, None]

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Round what is kept and gather it block by block; linear time."""
        values, scale = quantise(torch.where(mask, weight, 0))
        return _with_scale(_vector.pack(values, mask, pattern, torch.int8), scale)

    def unpack(self, packed: PackedWeight) -> Tensor:
        """Bytes times scales, float32."""
        scale = packed.tensors["scale"][: packed.shape[0], None]
        return _vector.unpack(_without_scale(packed)).to(torch.float32) * scale

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """Values and index as those of `vector`, and the scales."""
        scale = packed.tensors["scale"][: packed.shape[0]].cpu().clone()
        return {**_vector.to_storage(_without_scale(packed)), "scale": scale}

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Check scales and bytes; the rest is checked as a vector weight."""
        if value_dtype != torch.int8:
            raise BundleError(f"The layout int8_weights holds int8 values, the file says {value_dtype}.")
        scale = stored_tensor(tensors, "scale", torch.float32, (shape[0],))
        check_scale(scale)
        packed = _vector.from_storage(tensors, pattern, shape, torch.int8)
        check_bytes(packed.tensors["values"])
        return _with_scale(packed, scale)

    def expected_bytes(self, pattern: AbstractPattern, shape: Shape, value_bits: int) -> float:
        """The pattern's own bound, and four bytes per row for its scale."""
        return expected_bytes(pattern, shape, value_bits) + 4 * shape[0]
