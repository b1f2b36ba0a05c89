"""Which weights of a model are masked, and how they stay so while it is trained.

After `sparsify_` a layer holds zeros in `weight` and a buffer `weight_mask` beside it. The mask, not the zeros, is the
truth: a kept weight that happens to be zero may move, a masked one never does.
"""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core import ModelError, is_distributed
from ..models import MASK

# Integers as wide as the floating dtypes: a product of the bits with 0 or 1 gives exactly +0.0 or the value, also for
# NaN and infinity, and is twice as fast as a product of float with bool.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a DTensor, sharing its memory; any other tensor as it is."""
    if not is_distributed(tensor):
        return tensor
    part: Any = tensor
    local: Tensor = part.to_local()
    return local


@torch.no_grad()
def zero_dropped_(tensor: Tensor, kept: Tensor) -> None:
    """Write +0.0 wherever `kept` is False, in place.

    Args:
        tensor: floating point, any strides; of a DTensor the part of this process.
        kept: bool, shape of the tensor (of this process's part).
    """
    local = local_part(tensor)
    local.view(_BITS[local.element_size()]).mul_(kept)


@final
@dataclass(frozen=True, eq=False)
class MaskStamp:
    """Mask buffers and how often each has been written to.

    Attributes:
        masks: the buffers themselves; held, so that no other tensor can take their place in memory.
        versions: torch's own counters; -1 where torch does not count (inference tensors).
    """

    masks: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def same(self, other: "MaskStamp") -> bool:
        """Whether nothing has changed; False where that is not known."""
        return (
            self.versions == other.versions
            and -1 not in self.versions
            and all(ours is theirs for ours, theirs in zip(self.masks, other.masks))
        )


@final
@dataclass(frozen=True, eq=False)
class MaskedWeight:
    """One parameter and what must stay zero in it. The mask buffer is looked up anew every time, so that masks which
    are replaced, loaded or moved count at once.

    Attributes:
        name: of the parameter in the model.
        parameter: the dense tensor with zeros in it, or a DTensor of it.
        holders: the modules that have it as `weight` and a mask beside it; several where it is tied.
    """

    name: str
    parameter: nn.Parameter
    holders: tuple[nn.Module, ...]
    _shard: list[tuple["MaskStamp", Tensor]] = field(default_factory=list, repr=False)

    @property
    def kept(self) -> Tensor:
        """Bool, shape of the parameter (of this process's part, if sharded), True = keep; what all holders keep."""
        if not is_distributed(self.parameter):
            return self._whole()
        stamp = self.stamp()
        if not self._shard or not self._shard[0][0].same(stamp):
            self._shard[:] = [(stamp, _shard_like(self._whole(), self.parameter))]
        return self._shard[0][1]

    @property
    def dropped(self) -> Tensor:
        """The opposite of `kept`: True = must be zero."""
        return ~self.kept

    def _whole(self) -> Tensor:
        kept, *others = (mask_as_stored(self.name, self.parameter, holder) for holder in self.holders)
        for other in others:
            kept = kept & other
        return kept

    def stamp(self) -> "MaskStamp":
        """Which masks count now, for whoever keeps something made from them."""
        found = [mask for holder in self.holders if (mask := holder._buffers.get(MASK)) is not None]
        return MaskStamp(tuple(found), tuple(-1 if mask.is_inference() else mask._version for mask in found))

    def clear_gradient(self) -> None:
        """Put zeros into the gradient, so that norms do not count it and moments do not grow behind the mask."""
        if self.parameter.grad is not None:
            zero_dropped_(self.parameter.grad, self.kept)

    def clear(self) -> None:
        """Put the zeros back into the weight, and into its gradient."""
        zero_dropped_(self.parameter.detach(), self.kept)
        self.clear_gradient()


def mask_as_stored(name: str, weight: Tensor, holder: nn.Module) -> Tensor:
    """The mask of a module in the shape of its weight.

    Raises:
        ModelError: there is none any more, or it does not match the weight.
    """
    mask = holder._buffers.get(MASK)
    if mask is None:
        raise ModelError(f"The mask of {name} is gone. Sparsify the layer again, or stop keeping its mask.")
    if mask.numel() != weight.numel():
        raise ModelError(
            f"The mask of {name} has shape {tuple(mask.shape)}, its weight {tuple(weight.shape)}. Sparsify it again."
        )
    kept = mask if mask.dtype == torch.bool else mask.bool()
    if kept.shape == weight.shape:
        return kept
    if kept.ndim == 2 and kept.T.shape == weight.shape:
        return kept.T  # transformers' Conv1D stores (in, out)
    return kept.reshape(weight.shape)  # a convolution, masked in its (out, in*kh*kw) view


def _shard_like(mask: Tensor, parameter: Any) -> Tensor:
    """This process's part of a mask that every process holds whole; no communication."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    whole = DTensor.from_local(mask, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=parameter.placements).to_local().contiguous()


def masked_weights(model: nn.Module) -> list[MaskedWeight]:
    """Every masked weight of the model, each parameter once, in module order.

    Raises:
        ModelError: a mask does not match its weight, or the weight is packed already.
    """
    names: dict[int, str] = {}
    holders: dict[int, list[nn.Module]] = {}
    weights: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        if module._buffers.get(MASK) is None:
            continue
        name = f"{prefix}.weight" if prefix else "weight"
        weight = getattr(module, "weight", None)
        plain = isinstance(weight, nn.Parameter) and (type(weight.data) is Tensor or is_distributed(weight))
        if not isinstance(weight, nn.Parameter) or not plain:
            raise ModelError(
                f"{name} has a mask but no plain dense parameter, so it cannot be trained. "
                "Recover the model before pack_, not after."
            )
        mask_as_stored(name, weight, module)
        names.setdefault(id(weight), name)
        weights[id(weight)] = weight
        holders.setdefault(id(weight), []).append(module)
    return [MaskedWeight(name, weights[key], tuple(holders[key])) for key, name in names.items()]
