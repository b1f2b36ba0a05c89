"""Layer references: one weight that could be sparse, where it lives, and why it is left alone if it is."""

from dataclasses import dataclass, field
from typing import cast, final

import torch
from torch import Tensor, nn

from ..core import AbstractPattern, ModelError, parse_pattern, require_whole
from ..layouts import PackedWeight, infer_pattern, pack
from ..nn import SparseTensor, as_parameter, kept_places
from .views import LINEAR, AbstractView

MASK = "weight_mask"
"""Name of the persistent buffer that keeps a layer's mask beside its weight."""
PATTERN = "weight_pattern"
"""Name of the attribute that keeps the text of the mask's pattern; copied and pickled, in no state dict."""


def keep_mask(module: nn.Module, mask: Tensor, pattern: AbstractPattern | None) -> None:
    """Put a mask of the weight's own shape beside it, and remember what it was solved for."""
    module.register_buffer(MASK, mask, persistent=True)
    module.__dict__.pop(PATTERN, None)
    if pattern is not None:
        module.__dict__[PATTERN] = str(pattern)


def drop_mask(module: nn.Module) -> None:
    """Forget mask and pattern, if there are any."""
    module._buffers.pop(MASK, None)
    module._non_persistent_buffers_set.discard(MASK)
    module.__dict__.pop(PATTERN, None)


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
        return self.view.matrix(mask)

    def get_pattern(self) -> AbstractPattern | None:
        """The rule of the mask; None without.

        It is what the mask was solved for, while a weight packed so keeps just what the mask keeps; else what is read
        off the mask. Where the layer's end cuts tiles off, its `edge` says how they were solved.
        """
        mask = self.get_mask()
        if mask is None:
            return None
        known, read = self.remembered_pattern, infer_pattern(mask)
        known = None if known is None else known.obeyed_by(mask)
        if known is None or known == read:
            return read
        if known.cuts(self.shape):
            # No form of such a rule stores it, so what is packed is read off the mask.
            return known
        # A pattern may allow more than the mask keeps, and its form fills up with zeros. Ones, so that none counts as
        # dropped.
        packed = pack(mask.to(torch.float32), mask.contiguous(), "auto", known)
        return known if torch.equal(kept_places(packed), mask) else read

    @property
    def remembered_pattern(self) -> AbstractPattern | None:
        """What the mask was solved for, as `set_weight` was told; the mask may be another by now."""
        text = self.module.__dict__.get(PATTERN)
        return None if text is None else parse_pattern(text)

    def set_weight(self, weight: Tensor, mask: Tensor | None = None, pattern: AbstractPattern | None = None) -> None:
        """Write a weight in place and keep its mask beside it.

        Args:
            weight: `(out, in)`; cast to the stored dtype. Removed places are written as zero.
            mask: `(out, in)` bool, True = keep, becomes the persistent buffer `weight_mask`; None drops that buffer.
            pattern: what the mask was solved for, remembered beside it as `weight_pattern`; None: nothing is.

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
                drop_mask(module)
            else:
                own = self.view.as_stored(mask.to(stored.device), module)
                keep_mask(module, own.clone(), pattern)

    def require_zeros(self) -> None:
        """Raise ModelError where the mask drops weights that are not zero: to keep the rest would change the layer."""
        mask = self.get_mask()
        filled = 0 if mask is None else int((self.get_weight().ne(0) & ~mask).sum())
        if filled:
            raise ModelError(
                f"{filled:,} dropped weights of {self.name} are not zero any more, so packing would change its "
                "answers. Train with keep_masks_, or call sparsify_ again."
            )

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
            drop_mask(module)

    def _require_weight(self) -> None:
        weight = self.module._parameters.get("weight")
        if weight is None or isinstance(weight, SparseTensor) or self.shape == (0, 0):
            raise ModelError(f"{self.name} has no plain weight: {self.skipped_reason or 'it is packed'}.")
        require_whole(weight, self.name)
