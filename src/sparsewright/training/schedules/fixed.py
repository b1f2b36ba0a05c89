"""Masks as they are: whatever sparsified the model, nothing changes them."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from ...core import AbstractPattern
from .base import AbstractSchedule, MaskChange, Timing, schedules


@final
@schedules.register("fixed")
@dataclass(frozen=True)
class Fixed(AbstractSchedule):
    """Keep the masks that the model has."""

    needs_masks: ClassVar[bool] = True

    def pattern(self, final: AbstractPattern, step: int, timing: Timing) -> AbstractPattern:
        """The same at every step."""
        return final

    def due(self, step: int, timing: Timing) -> bool:
        """Never."""
        return False

    def choose(self, change: MaskChange) -> Tensor:
        """As it was."""
        return change.mask
