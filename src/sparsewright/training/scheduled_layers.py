"""Layers whose masks a schedule changes: their matrices, whole or sharded, and their mask buffers, written in place."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..core import AbstractPattern, ModelError, is_distributed
from ..models import MASK, LayerRef, PlanLike, keep_mask, layers, planned_layers
from .schedules import Prices

# Modules whose masks a schedule changes now: no parameters, which `fully_shard` exchanges. A copy of a model is free.
_TAKEN: "WeakSet[nn.Module]" = WeakSet()


@final
@dataclass(frozen=True, eq=False)
class ScheduledLayer:
    """One layer under a schedule.

    Attributes:
        ref: where it is.
        pattern: what its mask obeys at the end.
        prices: of its last transposable mask.
    """

    ref: LayerRef
    pattern: AbstractPattern
    prices: Prices = field(default_factory=Prices, repr=False)

    @property
    def parameter(self) -> nn.Parameter:
        """Its weight, a DTensor where it is sharded."""
        weight = self.ref.module._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def mask(self) -> Tensor:
        """`(out, in)` bool, as it is now."""
        mask = self.ref.get_mask()
        if mask is None:
            raise ModelError(f"The mask of {self.ref.name} is gone. Keep `weight_mask` while a schedule changes it.")
        return mask

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's own shape as `(out, in)`, gathered from all processes where it is sharded."""
        whole: Any = tensor.detach()
        if is_distributed(whole):
            whole = whole.full_tensor()
        seen: Tensor = whole.T if self.ref.kind == "transposed" else whole.flatten(1)
        return seen

    def set_mask(self, mask: Tensor, pattern: AbstractPattern) -> None:
        """Write the mask into the buffers of all modules that hold the weight, and remember its pattern.

        Buffers stay the same tensors, so that whoever holds them (DDP, a copy's bookkeeping) sees the new mask.
        """
        stored = self.ref.view.as_stored(mask, self.ref.module)
        for holder in self.ref.holders:
            buffer = holder._buffers.get(MASK)
            if buffer is None or buffer.shape != stored.shape or buffer.dtype != torch.bool:
                buffer = torch.empty_like(stored, memory_format=torch.contiguous_format)
            keep_mask(holder, buffer.copy_(stored), pattern)

    def remember(self, pattern: AbstractPattern) -> None:
        """Keep the text of the pattern beside the mask, for `pack_` and `save`."""
        for holder in self.ref.holders:
            mask = holder._buffers[MASK]
            assert mask is not None
            keep_mask(holder, mask, pattern)


def scheduled_layers(
    model: nn.Module,
    plan: PlanLike | None,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> list[ScheduledLayer]:
    """The layers that a plan makes sparse, or, without one, those that are masked, by the patterns of their masks.

    Raises:
        ModelError: none; a plan's errors are those of `sparsify_`.
    """
    if plan is not None:
        chosen = planned_layers(model, plan, filter_fn=filter_fn, include=include, exclude=exclude)
        return [ScheduledLayer(ref, pattern) for ref, pattern in chosen]
    found = []
    for ref in layers(model, include, exclude, mask_only=True):
        held = ref.module._parameters.get("weight")
        if held is None or ref.get_mask() is None or (filter_fn is not None and not filter_fn(ref.module, ref.name)):
            continue
        if ref.skipped_reason and (include is not None or exclude is not None or not ref.may_ask):
            continue
        pattern = ref.get_pattern()
        assert pattern is not None
        found.append(ScheduledLayer(ref, pattern))
    if not found:
        raise ModelError("No layer of this model has a mask, and no pattern was given. Pass one such as '2:4'.")
    return found


def require_free(chosen: Iterable[ScheduledLayer]) -> None:
    """Raise where a schedule changes the mask of a layer already: two would undo each other's masks.

    Raises:
        ModelError: names the layer.
    """
    for layer in chosen:
        if any(holder in _TAKEN for holder in layer.ref.holders):
            raise ModelError(
                f"One schedule changes the mask of a layer, and {layer.ref.name} is under one already. Call finish() "
                "or remove() of that sparse training first, or leave the layer out with exclude=."
            )


def mark(chosen: Iterable[ScheduledLayer]) -> None:
    """Take layers under a schedule, until `unmark`."""
    _TAKEN.update(holder for layer in chosen for holder in layer.ref.holders)


def unmark(chosen: Iterable[ScheduledLayer]) -> None:
    """Free layers for another schedule."""
    _TAKEN.difference_update([holder for layer in chosen for holder in layer.ref.holders])
