"""The base of a layout of which only `pack` and `unpack` are written: it stores its tensors as they are."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import AbstractPattern, BundleError
from .base import AbstractLayout, PackedWeight, Shape, layouts


class AbstractPlainLayout(AbstractLayout):
    """Any pattern, and a file form that equals the memory form.

    What a file brings is unpacked once and checked, so `unpack` must raise rather than read out of bounds; torch's own
    indexing does. Where files come from others, override `from_storage` with checks of your own (see `AbstractLayout`).
    """

    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Any pattern, wherever the pattern itself fits."""
        return pattern.why_not(shape)

    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """The tensors as they are."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in packed.tensors.items()}

    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Take the tensors if they unpack to a finite weight of this shape that obeys the pattern."""
        name = next(known for known, layout in layouts.items() if type(layout) is type(self))
        packed = PackedWeight(name, pattern, shape, value_dtype, dict(tensors))
        try:
            weight = self.unpack(packed)
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
            raise BundleError(
                f"The layout {name!r} cannot read what is stored: {error}. Write the file again."
            ) from error
        if tuple(weight.shape) != shape or not bool(torch.isfinite(weight).all()):
            raise BundleError(
                f"The layout {name!r} must read finite values of shape {shape}, got {tuple(weight.shape)}: the file is "
                "damaged. Write it again."
            )
        broken = pattern.why_not(shape) or pattern.check_mask(weight != 0)
        if broken:
            raise BundleError(f"The stored weight breaks {pattern}: {'; '.join(broken)}. Write the file again.")
        return packed
