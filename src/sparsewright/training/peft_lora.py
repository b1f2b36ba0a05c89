"""Merging adapters of the package peft into a masked model without losing its zeros.

peft's own merge adds a dense change, `W + scale * B A`, which fills what the mask dropped. Here the change is masked.
The merged model is therefore not quite what was trained; how much of each change was lost is told. Adapters that are
trained masked from the start lose nothing: `add_lora_`.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core import MissingPackageError, ModelError
from ..models import MASK
from .masked_weights import masked_weights


@final
@dataclass(frozen=True, eq=False)
class PeftMerge:
    """What `merge_peft_lora` did.

    Attributes:
        model: the model itself, without peft's wrapping.
        lost: parameter name -> share of its change that the mask took away, 0..1: the norm of what was dropped over the
            norm of the whole change.
    """

    model: nn.Module
    lost: dict[str, float]


def merge_peft_lora(model: Any) -> PeftMerge:
    """Merge a `peft.PeftModel` around a masked model; what masks drop is exactly zero again.

    Args:
        model: of peft, its base model sparsified before `get_peft_model`; it cannot be used afterwards, as after
            `merge_and_unload`.

    Raises:
        MissingPackageError: peft is not installed.
        ModelError: this is no `PeftModel`, or none of its layers is masked.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingPackageError("Merging adapters of peft needs the package `peft`: pip install peft.") from error
    if not isinstance(model, PeftModel):
        raise ModelError(
            f"merge_peft_lora takes a peft.PeftModel, got {type(model).__name__}. For add_lora_ there is merge_lora_."
        )
    base: nn.Module = model.get_base_model()
    # By the mask buffer, which the merge leaves alone, because peft puts other modules around the layers.
    before = {id(module._buffers[MASK]): _weight(module).clone() for module in base.modules() if _masked(module)}
    if not before:
        raise ModelError("No layer of this model is masked, so peft's own merge_and_unload does. Call it instead.")
    merged: nn.Module = model.merge_and_unload()
    lost = {}
    for weight in masked_weights(merged):
        change = _weight(weight.holders[0]) - before[id(weight.holders[0]._buffers[MASK])]
        whole = float(change.norm())
        lost[weight.name] = float(torch.where(weight.kept, 0, change).norm()) / whole if whole else 0.0
        weight.clear()
    return PeftMerge(merged, lost)


def _masked(module: nn.Module) -> bool:
    return module._buffers.get(MASK) is not None


def _weight(module: nn.Module) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.detach()
