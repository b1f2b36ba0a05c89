"""`adopt_masks_`: earlier work taken over: masks, or the zeros in the weights, become a plan without pruning again."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import (
    AbstractPattern,
    Dense,
    LayerPlan,
    ModelError,
    PatternError,
    Plan,
    require_finite,
    require_module,
    suggest,
)
from ..layouts import recognise
from ..solvers import solve_mask
from .adapters import layers
from .layer_ref import LayerRef
from .mask_sources import MASK_SUFFIX, ORIGINAL, as_mask, folded, known_layer, pruned_modules, read_arrays, unpruned
from .sparsify import LayerResult, SparsifyResult, relative_error

# What `LayerResult.sparsifier` says of adopted layers.
ADOPTED = "adopted"
# Fewer zeros than this share of a weight are chance, not a pattern.
_LEAST_ZEROS = 0.01


def adopt_masks_(
    model: nn.Module,
    masks: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> SparsifyResult:
    """Take over what was pruned elsewhere, in place: afterwards the model is as `sparsify_` leaves one.

    Without `masks`, modules of `torch.nn.utils.prune` give theirs and become plain again, layers with a `weight_mask`
    of ours keep it, and elsewhere the zeros in the weights are the mask. The pattern is the tightest one that each mask
    obeys; a few exact zeros among what a pattern keeps stay kept.

    Args:
        model: any module.
        masks: layer name (also with `.weight`, `.mask` or `.weight_mask` behind) -> array of 0 (removed) and 1 (kept)
            in the shape of the weight; or a `.safetensors` or `.npz` file of such arrays; or a state dict with
            `weight_orig` and `weight_mask`, whose other tensors are loaded too.
        include, exclude: names or `re:EXPRESSION`, see `layers`; for zeros only.

    Returns:
        Plan and layers as of `sparsify_`; `error` is what a mask took that was not zero yet, relative to the weight.

    Raises:
        ModelError: nothing is sparse, a mask is for no layer, of another shape, or not of 0 and 1, or two for one
            layer differ.
        NumericError: a weight is NaN or infinite, kept or not; names layer and position.
        FileError: the file is missing, damaged, or holds pickled or too large arrays.

    After each of them the model is as it was.
    """
    started = time.perf_counter()
    require_module(model)
    given = None if masks is None else _given(model, masks)
    pruned = {} if given is not None else pruned_modules(model)
    for name, module in pruned.items():
        require_finite(module.get_parameter("weight_orig"), f"weight of {name}")
    own: dict[str, Tensor] = {}
    live = {name: as_mask(module._buffers["weight_mask"], name) for name, module in pruned.items()}
    with unpruned(list(pruned.values())):
        if given is None:
            chosen = _found(model, live, include, exclude)
        else:
            if any(key.endswith(ORIGINAL) for key in given):
                state = {
                    key: value if isinstance(value, Tensor) else torch.as_tensor(value) for key, value in given.items()
                }
                for key, value in state.items():
                    # Buffers may be infinite: attention masks are.
                    if key.endswith((ORIGINAL, ".weight")):
                        require_finite(value, f"tensor {key}")
                given = {key: value for key, value in state.items() if key.endswith(MASK_SUFFIX)}
                own = _checked_state(model, folded(state))
            chosen = _named(layers(model, mask_only=True), given)
        if not chosen:
            raise ModelError(_nothing_found(model, given is not None))
        for ref, _, _ in chosen:
            if f"{ref.name}.weight" not in own:
                require_finite(ref.get_weight(), f"weight of {ref.name}")
    # From here on nothing is refused any more.
    if own:
        model.load_state_dict(own, strict=False)
    done, planned = {}, {}
    for ref, mask, pattern in chosen:
        before = ref.get_weight().clone()
        ref.set_weight(before, mask, pattern)
        error = relative_error(before, ref.get_weight(), None)
        density = float(mask.sum()) / mask.numel()
        done[ref.name] = LayerResult(str(pattern), ADOPTED, density, error, 0.0)
        planned[ref.name] = LayerPlan(pattern)
    skipped = {
        ref.name: ref.skipped_reason or "no mask, and hardly a zero"
        for ref in layers(model, mask_only=True)
        if ref.name not in done
    }
    return SparsifyResult(Plan(planned), done, skipped, time.perf_counter() - started)


def _nothing_found(model: nn.Module, with_masks: bool) -> str:
    packed = next((ref.name for ref in layers(model) if ref.get_packed() is not None), None)
    if with_masks:
        return "The masks remove nothing, so no layer would be sparse. Pass masks that hold zeros, or call sparsify_."
    if packed is not None:
        return f"{packed} is packed, so it has no mask or zeros to take over. Adopt masks before the model is packed."
    return "No layer of this model is masked or has zeros enough to be sparse. Pass masks, or call sparsify_."


def _given(model: nn.Module, masks: Any) -> dict[str, Any]:
    if isinstance(masks, Mapping):
        other = next((key for key in masks if not isinstance(key, str)), None)
        if other is not None:
            raise ModelError(f"Masks go by the names of layers, got the key {other!r}. Name layers as layers() does.")
        return dict(masks)
    if not isinstance(masks, str | os.PathLike):
        raise ModelError(f"Masks are a mapping from layer names to arrays or a file, got {type(masks).__name__}.")
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    sizes |= {ref.name: ref.shape[0] * ref.shape[1] for ref in layers(model)}
    return dict(read_arrays(Path(masks), sizes))


def _checked_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state itself, once every tensor is known to fit the model."""
    own = model.state_dict()
    for key, value in state.items():
        if key not in own:
            raise ModelError(f"The masks' state holds {key!r}, which this model does not have. {suggest(key, own)}")
        if own[key].shape != value.shape:
            raise ModelError(
                f"{key} has the shape {tuple(own[key].shape)} in this model, got {tuple(value.shape)}. "
                "Build the model that was pruned."
            )
    return dict(state)


Chosen = list[tuple[LayerRef, Tensor, AbstractPattern]]


def _named(refs: Sequence[LayerRef], masks: Mapping[str, Any]) -> Chosen:
    by_name = {ref.name: ref for ref in refs}
    chosen: Chosen = []
    seen: dict[str, tuple[str, Tensor]] = {}
    for key, values in masks.items():
        ref = by_name[known_layer(key, by_name)]
        mask = as_mask(values, ref.name)
        if ref.name in seen:
            other, earlier = seen[ref.name]
            if not torch.equal(earlier, mask):
                raise ModelError(f"{other!r} and {key!r} are two masks for {ref.name}, and differ. Pass one of them.")
            continue
        seen[ref.name] = key, mask
        stored = ref.module._parameters.get("weight")
        if stored is None or ref.shape == (0, 0) or (ref.skipped_reason and not ref.may_ask):
            raise ModelError(f"{ref.name} cannot take a mask: {ref.skipped_reason or 'it has no plain weight'}.")
        if mask.shape != stored.shape:
            raise ModelError(
                f"The mask of {ref.name} must have its weight's shape {tuple(stored.shape)}, got {tuple(mask.shape)}."
            )
        matrix = ref.view.matrix(mask.to(stored.device))
        if not bool(matrix.any()):
            raise ModelError(f"The mask of {ref.name} keeps nothing. Masks hold 1 where a weight is kept: invert them?")
        pattern = recognise(matrix)
        if not isinstance(pattern, Dense):
            chosen.append((ref, matrix, pattern))
    return chosen


def _found(
    model: nn.Module, masks: Mapping[str, Tensor], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> Chosen:
    """Masks of the model's own: of torch's pruning (given, as it is off), of ours, and zeros."""
    refs = layers(model, mask_only=True)
    # Modules that are no layers of ours keep their zeros without a mask.
    able = {ref.name for ref in refs if not ref.skipped_reason or ref.may_ask}
    chosen = _named(refs, {name: mask for name, mask in masks.items() if name in able})
    for ref in layers(model, include, exclude, mask_only=True):
        if ref.name in masks or ref.skipped_reason:
            continue
        require_finite(ref.get_weight(), f"weight of {ref.name}")
        mask = ref.get_mask()
        found = (mask.contiguous(), recognise(mask)) if mask is not None else _from_zeros(ref.get_weight())
        if found is not None and not isinstance(found[1], Dense):
            chosen.append((ref, *found))
    return chosen


def _from_zeros(weight: Tensor) -> tuple[Tensor, AbstractPattern] | None:
    """What is not zero, filled up to the pattern's count where that drops nothing; None where hardly a zero is."""
    kept = weight != 0
    if int((~kept).sum()) < _LEAST_ZEROS * kept.numel() or not bool(kept.any()):
        return None
    pattern = recognise(kept)
    try:
        full = solve_mask(kept.float(), pattern, edge="at_most")
    except PatternError:
        return kept, pattern
    return (full if bool((full | ~kept).all()) else kept), pattern
