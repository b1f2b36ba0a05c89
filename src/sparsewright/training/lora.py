"""LoRA whose merge keeps the zeros: adapters of masked layers, masked like the weight they change.

A layer computes `y = x (W + scale * mask * (B A))^T`, with W frozen and scale = alpha / rank, so that the sum can be
written into W at the end: nothing changes but rounding, and what the mask drops stays exactly zero. Source: Hu et al.
2021, arXiv:2106.09685; with the product masked, Munoz et al. 2024, arXiv:2410.03750 (SparsePEFT).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core import DataError, ModelError, RecipeError, is_number, is_whole, require_finite, require_module
from ..models import layers
from .masked_weights import MaskedWeight, masked_weights


@final
class MaskedLora(nn.Module):
    """Parametrisation of one masked weight.

    Attributes:
        lora_a: `(rank, in)`, drawn as `nn.Linear` draws its weight.
        lora_b: `(out, rank)`, zeros at first, so that the layer begins as it was.
        scale: alpha / rank.
    """

    kept: Tensor

    def __init__(self, weight: Tensor, kept: Tensor, turned: bool, rank: int, alpha: float) -> None:
        super().__init__()
        out, in_ = (weight.shape[1], weight.shape[0]) if turned else (weight.shape[0], weight[0].numel())
        self.turned, self.scale = turned, alpha / rank
        options: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        self.lora_a = nn.Parameter(torch.empty(rank, in_, **options))
        self.lora_b = nn.Parameter(torch.zeros(out, rank, **options))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        # In no state dict: the layer's own mask is there already.
        self.register_buffer("kept", kept.clone(), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its masked change; any shape that `(out, in)` can be seen as."""
        change = self.scale * (self.lora_b @ self.lora_a)
        stored = change.T if self.turned else change.reshape(weight.shape)
        return weight + torch.where(self.kept, stored, torch.zeros((), dtype=stored.dtype, device=stored.device))


def add_lora_(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[nn.Parameter]:
    """Put adapters on masked layers, in place; afterwards nothing but adapters trains.

    Args:
        model: after `sparsify_`; not packed.
        rank: of each change.
        alpha: changes are scaled by alpha / rank.
        include, exclude: names of layers or `re:EXPRESSION`, see `models.layers`; default all masked ones.

    Returns:
        The parameters to train, two per weight. A tied weight has one adapter, which serves all its layers.

    Raises:
        ModelError: no masked layer is chosen, or one has adapters already.
        RecipeError: rank or alpha is out of range.
    """
    require_module(model)
    if not is_whole(rank, 1) or not is_number(alpha) or not 0 < alpha < math.inf:
        raise RecipeError(f"LoRA takes a rank of at least 1 and an alpha above zero, got rank={rank}, alpha={alpha}.")
    if any(True for _ in _adapters(model)):
        raise ModelError("This model has adapters already. Call merge_lora_ before you add others.")
    chosen = {
        id(ref.module)
        for ref in layers(model, include, exclude, mask_only=True)
        if not ref.skipped_reason or (include is None and exclude is None)
    }
    weights = [weight for weight in masked_weights(model) if id(weight.holders[0]) in chosen]
    if not weights:
        raise ModelError("No masked layer of this model is chosen, so there is nothing to adapt. Call sparsify_ first.")
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for weight in weights:
        adapter = MaskedLora(weight.parameter.detach(), weight.kept, _turned(weight), rank, alpha)
        for holder in weight.holders:
            parametrize.register_parametrization(holder, "weight", adapter)
        trained += [adapter.lora_a, adapter.lora_b]
    return trained


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone: `<layer>.lora_a` and `<layer>.lora_b`, detached, for any file of tensors."""
    return {
        f"{name}.{key}": parameter.detach()
        for name, _, adapter in _adapters(model)
        for key, parameter in adapter.named_parameters()
    }


def load_lora_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write saved adapters into those of a model, in place.

    Raises:
        DataError: names or shapes are not those of the model's adapters.
        NumericError: a value is NaN or infinite; nothing was changed.
    """
    require_module(model)
    if not isinstance(state, Mapping) or not all(isinstance(values, Tensor) for values in state.values()):
        came = "values that are no tensors" if isinstance(state, Mapping) else type(state).__name__
        raise DataError(f"Saved adapters map names to tensors, got {came}. Pass what lora_state_dict gave.")
    own = lora_state_dict(model)
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        odd = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
        raise DataError(
            f"Saved adapters must be those of this model, and {odd[0] if odd else 'one'} is not. Call add_lora_ with "
            "the same rank and layers as before."
        )
    for name in own:
        require_finite(state[name], f"adapter {name}")
    with torch.no_grad():
        for name, values in own.items():
            values.copy_(state[name])


def merge_lora_(model: nn.Module) -> list[str]:
    """Write the adapters into the weights and take them off, in place; zeros stay exactly zero.

    Names and shapes in `state_dict` are those from before `add_lora_`. What was frozen stays frozen.

    Returns:
        Names of the merged layers.

    Raises:
        ModelError: the model has no adapters.
        NumericError: a weight with its adapter is NaN or infinite; names the layer, and nothing was changed.
    """
    require_module(model)
    found = list(_adapters(model))
    if not found:
        raise ModelError("This model has no adapters to merge. Call add_lora_ first.")
    # All before the first is merged, and twice rather than kept: a second copy of all weights may not fit.
    for name, holders, _ in found:
        require_finite(holders[0].weight.detach(), f"weight of {name} with its adapter")
    for _, holders, _ in found:
        with torch.no_grad():
            merged = holders[0].weight.detach().clone()
        for holder in holders:
            parametrize.remove_parametrizations(holder, "weight", leave_parametrized=False)
        with torch.no_grad():
            holders[0].weight.copy_(merged)
    return [name for name, _, _ in found]


def _adapters(model: nn.Module) -> Iterator[tuple[str, list[Any], MaskedLora]]:
    """Each adapter once, with the name of its first layer and all layers that have it."""
    found: dict[int, tuple[str, list[Any], MaskedLora]] = {}
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        every: Any = module.parametrizations
        for adapter in every["weight"]:
            if isinstance(adapter, MaskedLora):
                found.setdefault(id(adapter), (name, [], adapter))[1].append(module)
    yield from found.values()


def _turned(weight: MaskedWeight) -> bool:
    # By name and module path, as views do: transformers need not be installed.
    kind = type(weight.holders[0])
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
