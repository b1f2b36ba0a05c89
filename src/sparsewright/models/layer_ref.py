"""Layer references: one weight that could be sparse, where it lives, and why it is left alone if it is."""

from dataclasses import dataclass, field
from typing import cast, final

import torch
from torch import Tensor, nn

from ..core import ModelError, require_whole
from ..layouts import PackedWeight
from ..nn import SparseTensor, as_parameter
from .views import LINEAR, AbstractView

MASK = "weight_mask"
"""Name of the persistent buffer that keeps a layer's mask beside its weight."""


@final
@dataclass(frozen=True, eq=False)
class LayerRef:
    """One layer of a model.

    Attributes:
        name: the module's full name, for instance `encoder.layer.0.output.dense`.
        module: the module itself; its parameter `weight` is what becomes sparse.
        kind: `linear`, `transposed`, `conv2d`, or the module's kind where it can never be sparse.
        shape: `(out, in)` of the weight through its view.
        skipped_reason: why the layer is left dense; empty where it takes part.
        may_ask: the reason is a default: naming the layer in `include` or in a rule lifts it.
        view: how weight and inputs are seen as matrices.
        also: further modules of this kind with the same parameter; they read the same zeros and hold the same mask.
    """

    name: str
    module: nn.Module
    kind: str
    shape: tuple[int, int]
    skipped_reason: str = ""
    may_ask: bool = False
    view: AbstractView = field(default=LINEAR, repr=False)
    also: tuple[nn.Module, ...] = field(default=(), repr=False)

    @property
    def holders(self) -> tuple[nn.Module, ...]:
        """Every module that runs with this weight, the layer's own first."""
        return (self.module, *self.also)

    @property
    def runs_packed(self) -> bool:
        """Whether this release can run the layer from a packed weight."""
        return self.view.runs_packed

    def get_weight(self) -> Tensor:
        """`(out, in)` view of the weight, sharing its memory, without gradient."""
        self._require_weight()
        return self.view.weight(self.module)

    def get_mask(self) -> Tensor | None:
        """`(out, in)` bool mask of a sparsified layer, or None."""
        mask = self.module._buffers.get(MASK)
        if mask is None:
            return None
        stored = self.module._buffers[MASK]
        assert stored is not None
        return stored.T if self.kind == "transposed" else stored.flatten(1)

    def set_weight(self, weight: Tensor, mask: Tensor | None = None) -> None:
        """Write a weight in place and keep its mask beside it.

        Args:
            weight: `(out, in)`; cast to the stored dtype. Removed places are written as zero.
            mask: `(out, in)` bool, True = keep, becomes the persistent buffer `weight_mask`; None drops that buffer.

        Raises:
            ModelError: another shape, or the layer holds no plain weight (it was packed) or a part of one (sharded).
        """
        self._require_weight()
        if tuple(weight.shape) != self.shape or (mask is not None and tuple(mask.shape) != self.shape):
            raise ModelError(f"{self.name} has the shape {self.shape}, got {tuple(weight.shape)}. Pass (out, in).")
        with torch.no_grad():
            kept = weight if mask is None else torch.where(mask, weight, torch.zeros((), dtype=weight.dtype))
            stored = self.module.weight
            assert isinstance(stored, Tensor)
            stored.copy_(self.view.as_stored(kept, self.module))
        for module in self.holders:
            if mask is None:
                module._buffers.pop(MASK, None)
            else:
                own = self.view.as_stored(mask.to(stored.device), module)
                module.register_buffer(MASK, own.clone(), persistent=True)

    def get_packed(self) -> PackedWeight | None:
        """The packed weight that the layer runs, or None where its weight is a plain tensor."""
        weight = self.module._parameters.get("weight")
        return weight.packed if isinstance(weight, SparseTensor) else None

    def as_tensor(self, packed: PackedWeight, dtype: torch.dtype = torch.float32) -> SparseTensor:
        """A packed weight as this layer's module takes it: seen as `dtype`, turned or in four dimensions if need be."""
        view_shape = None
        if self.kind == "conv2d":
            stored = self.module.weight
            assert isinstance(stored, Tensor)
            view_shape = tuple(stored.shape)
        return SparseTensor(packed, self.kind == "transposed", dtype, view_shape)

    def set_packed(self, packed: PackedWeight) -> None:
        """Let the layer run a packed weight; its mask buffer goes, the packed weight knows what it keeps.

        Raises:
            ModelError: this kind of layer cannot run packed, or the shape is another.
        """
        if not self.runs_packed or packed.shape != self.shape:
            reason = (
                f"it has the shape {self.shape}, got {packed.shape}" if self.runs_packed else f"it is a {self.kind}"
            )
            raise ModelError(f"{self.name} cannot run this packed weight: {reason}. Leave it masked or dense.")
        parameter = cast(nn.Parameter, as_parameter(self.as_tensor(packed)))
        for module in self.holders:
            module.register_parameter("weight", parameter)
            module._buffers.pop(MASK, None)

    def _require_weight(self) -> None:
        weight = self.module._parameters.get("weight")
        if weight is None or isinstance(weight, SparseTensor) or self.shape == (0, 0):
            raise ModelError(f"{self.name} has no plain weight: {self.skipped_reason or 'it is packed'}.")
        require_whole(weight, self.name)
