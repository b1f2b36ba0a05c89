"""What a layout is: how a masked weight is stored, and the frozen value that carries it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ..core import AbstractPattern, LayoutError, Registry

Shape = tuple[int, int]

VALUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@final
@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A masked weight in one layout: frozen, comparable by identity, cheap to hand around.

    Attributes:
        layout: registered name of the layout that made it.
        pattern: the rule that the mask obeys.
        shape: `(out, in)` of the dense weight.
        value_dtype: dtype of the kept values and of `unpack()`; int8 values unpack to float32.
        tensors: the layout's own tensors by name; treat them as read-only.
    """

    layout: str
    pattern: AbstractPattern
    shape: Shape
    value_dtype: torch.dtype
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 2 or min(shape) < 1:
            raise LayoutError(f"A packed weight has a shape (out, in) of at least 1 x 1, got {shape}.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be copied or sent to a process; the plain dict can.
        return (PackedWeight, (self.layout, self.pattern, self.shape, self.value_dtype, dict(self.tensors)))

    @property
    def group(self) -> int:
        """Consecutive output rows that share one choice of columns."""
        return self.pattern.group

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors in memory (the file form is `storage_bytes`)."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    def unpack(self) -> Tensor:
        """The dense weight, `(out, in)` in `value_dtype`, zero where nothing is kept."""
        return layouts.get(self.layout).unpack(self)

    def with_values(self, value_dtype: torch.dtype) -> "PackedWeight":
        """The same places with values of another floating dtype; itself if they have it already.

        Raises:
            LayoutError: a value is too large for the dtype.
        """
        if value_dtype == self.value_dtype:
            return self
        if torch.int8 in (value_dtype, self.value_dtype):
            raise LayoutError("Int8 values have scales of their own: unpack the weight and pack it again.")
        cast = {
            name: tensor.to(value_dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.tensors.items()
        }
        if any(tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()) for tensor in cast.values()):
            raise LayoutError(
                f"A kept value is beyond the range of {value_dtype}. Store this layer with {self.value_dtype} values."
            )
        return replace(self, value_dtype=value_dtype, tensors=cast)

    def to(self, device: torch.device | str) -> "PackedWeight":
        """The same on another device; itself if it is there already."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        same = all(moved[name] is tensor for name, tensor in self.tensors.items())
        return self if same else replace(self, tensors=moved)


class AbstractLayout(ABC):
    """How a masked weight is stored in memory and in a file.

    Laws (checked by `sparsewright.testing.LayoutContract`): `unpack(pack(w, mask)) == where(mask, w, 0)` rounded to the
    value dtype, bit for bit; `from_storage(to_storage(p))` gives the same weight; malformed storage raises BundleError.

    Attributes:
        value_dtypes: of the kept values that it stores.
    """

    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = VALUE_DTYPES

    @abstractmethod
    def why_not(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Reasons why a weight of this pattern and shape cannot be stored so; empty if it can."""

    @abstractmethod
    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        """Store what the mask keeps.

        Args:
            weight: `(out, in)`, floating point, finite.
            mask: `(out, in)` bool, True = keep, obeys `pattern`; the door `pack()` has checked both.
            pattern: the rule; `why_not(pattern, shape)` is empty.
            value_dtype: one of `value_dtypes`.
        """

    def rounded(self, weight: Tensor, value_dtype: torch.dtype) -> Tensor:
        """What becomes of `(out, in)` weights in a value dtype; the values that `unpack` gives back."""
        return weight.to(value_dtype)

    @abstractmethod
    def unpack(self, packed: PackedWeight) -> Tensor:
        """Dense `(out, in)` in `packed.value_dtype` (float32 for int8), zero where nothing is kept."""

    @abstractmethod
    def to_storage(self, packed: PackedWeight) -> dict[str, Tensor]:
        """The bit-packed file form, CPU, contiguous: `values` (value dtype), `index` (uint8) and whatever else."""

    @abstractmethod
    def from_storage(
        self, tensors: Mapping[str, Tensor], pattern: AbstractPattern, shape: Shape, value_dtype: torch.dtype
    ) -> PackedWeight:
        """Rebuild from the file form in linear time, trusting nothing.

        Raises:
            BundleError: a tensor is missing, or of another dtype, size or content than the pattern and shape ask for.
        """

    def expected_bytes(self, pattern: AbstractPattern, shape: Shape, value_bits: int) -> float:
        """Bytes that the file form should take; the contract allows 3 % more. The pattern's own bound, unless told."""
        return pattern.theoretical_bytes(shape, value_bits)


layouts: Registry[AbstractLayout] = Registry("layouts", AbstractLayout)


def storage_bytes(packed: PackedWeight) -> int:
    """Bytes of the file form of a packed weight."""
    stored = layouts.get(packed.layout).to_storage(packed)
    return sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
