"""A model's state, flattened for the file: packed weights, plain tensors, tied names."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from ..core import (
    AbstractPattern,
    BundleError,
    Dense,
    LayerPlan,
    Plan,
    Unstructured,
    ValueType,
    require_finite,
    require_plan,
    require_whole,
)
from ..layouts import PackedWeight, choose_layout, float_layout, infer_pattern, layouts, pack
from ..models import MASK, LayerRef
from ..models import layers as find_layers
from ..nn import SparseTensor, kept_places
from .manifest import VALUE_TYPES, View


@final
@dataclass(frozen=True, eq=False)
class SparseLayer:
    """One sparse weight of the model.

    Attributes:
        packed: its packed form.
        view: how the parameter relates to `(out, in)`.
        parameter_shape: shape of the parameter in the module.
        dtype: the dtype that the module sees.
    """

    packed: PackedWeight
    view: View
    parameter_shape: tuple[int, ...]
    dtype: torch.dtype


@final
@dataclass(frozen=True, eq=False)
class ModelState:
    """All that a bundle stores of a model.

    Attributes:
        layers: module name -> sparse weight.
        plain: name -> tensor as it will be stored, in the order of the state dict.
        dense_dtype: name -> (stored dtype, original dtype), only where they differ.
        aliases: name of a tied tensor -> name under which it is stored.
    """

    layers: dict[str, SparseLayer] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    dense_dtype: dict[str, tuple[torch.dtype, torch.dtype]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


def weight_name(layer: str) -> str:
    """State name of a layer's weight; the model itself may be the layer."""
    return f"{layer}.weight" if layer else "weight"


def layer_of(name: str) -> str:
    """Layer whose weight has this state name; the opposite of `weight_name`."""
    return name.removesuffix("weight").removesuffix(".")


def is_mask(name: str) -> bool:
    """Whether a state name is that of a mask buffer."""
    return name.rpartition(".")[2] == MASK


def flatten(model: nn.Module, plan: Plan | None, half: bool) -> ModelState:
    """Collect and pack.

    Args:
        model: dense, masked (`weight_mask` buffers) or packed (`SparseTensor` parameters) layers, in any mixture.
        plan: patterns and value types of masked layers; where it is silent the pattern is read off the mask.
        half: store float32 parameters that are not sparse as float16, except those that overflow it.

    Raises:
        NumericError: a parameter holds NaN or infinity; the message names it.
        BundleError: the state holds something other than tensors.
        ModelError: dropped weights of a masked layer are not zero any more, or a tensor is sharded.
    """
    state = ModelState()
    require_plan(plan)
    planned = dict(plan.layers) if plan is not None else {}
    masked = {weight_name(ref.name): ref for ref in find_layers(model) if ref.get_mask() is not None}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    seen: dict[tuple[object, ...], str] = {}
    held = model.state_dict(keep_vars=True)
    holders = Counter(_identity(value) for value in held.values() if isinstance(value, Tensor) and not value.is_meta)
    for name, value in held.items():
        if is_mask(name):
            continue
        if "_packed_params" in name:
            raise BundleError(
                f"A bundle stores no layers of torch's own quantisation, but {name.partition('._packed_params')[0]!r} "
                "is one. Plan the layer with int8 values instead: `pack_` makes it int8 in a form that can be stored."
            )
        if not isinstance(value, Tensor):
            raise BundleError(
                f"A bundle stores tensors only, but {name!r} is a {type(value).__name__}. Remove it first."
            )
        require_whole(value, name)
        if value.is_meta:
            raise BundleError(f"{name!r} is on the meta device and has no data to save. Load the weights first.")
        key = _identity(value)
        if key in seen:
            state.aliases[name] = seen[key]
            continue
        seen[key] = name
        layer = layer_of(name)
        if isinstance(value, SparseTensor):
            state.layers[layer] = _of_packed(layer, value)
        elif name in masked:
            require_finite(value, f"weight of {layer or 'the model'}")
            if holders[key] == 1:
                # A weight that several layers hold may be masked by each in its own way.
                masked[name].require_zeros()
            state.layers[layer] = _of_masked(masked[name], planned.get(layer))
        else:
            _add_plain(state, name, value.detach(), name in parameters, half)
    return state


def _identity(value: Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor: the same object, or the same memory seen in the same way."""
    if isinstance(value, SparseTensor):
        return (id(value.packed), value.transposed, value.view_shape, value.dtype)
    if value.numel() == 0:
        return (id(value),)
    return (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)


def _of_packed(layer: str, value: SparseTensor) -> SparseLayer:
    for tensor in value.packed.tensors.values():
        require_finite(tensor, f"packed weight of {layer or 'the model'}")
    view: View = "transposed" if value.transposed else "linear" if value.view_shape is None else "conv2d"
    return SparseLayer(value.packed, view, tuple(value.shape), value.dtype)


def _of_masked(ref: LayerRef, planned: LayerPlan | None) -> SparseLayer:
    mask = ref.get_mask()
    assert mask is not None
    weight, mask = ref.get_weight().contiguous(), mask.contiguous()
    kind: ValueType = planned.value_dtype if planned is not None else "fp32"
    dtype = VALUE_TYPES[kind] if planned is not None else None
    packed = None
    for pattern in _patterns(ref, mask, planned):
        wanted = choose_layout(pattern, ref.shape, torch.int8) if kind == "int8" else float_layout(pattern, ref.shape)
        runs = ref.runs_packed and kind in ref.view.value_types
        if not runs or layouts.get(wanted).why_not(pattern, ref.shape):
            # What cannot run packed comes back with its mask, so it is kept in the form that remembers the mask itself.
            packed = pack(weight, mask, "bitmask", pattern, None if kind == "int8" else dtype)
        else:
            packed = pack(weight, mask, wanted, pattern, dtype)
        # A pattern may allow more than the mask keeps, and its form fills up with zeros: the mask would be lost.
        if torch.equal(kept_places(packed), mask):
            break
    assert packed is not None
    parameter = ref.module.weight
    assert isinstance(parameter, Tensor)
    view: View = "transposed" if ref.kind == "transposed" else "conv2d" if ref.kind == "conv2d" else "linear"
    return SparseLayer(packed, view, tuple(parameter.shape), parameter.dtype)


def _patterns(ref: LayerRef, mask: Tensor, planned: LayerPlan | None) -> Iterator[AbstractPattern]:
    """Patterns of a mask, best first; the last one keeps exactly what the mask keeps."""
    asked = None if planned is None or planned.is_dense else planned.pattern
    if asked is not None and not asked.cuts(ref.shape) and not asked.check_mask(mask):
        yield asked
    known = ref.get_pattern()
    if known is not None and not known.cuts(ref.shape):
        yield known
    yield (read := infer_pattern(mask))
    if not isinstance(read, Dense):
        yield Unstructured(max(1, int(mask.sum())) / mask.numel())


def _add_plain(state: ModelState, name: str, value: Tensor, is_parameter: bool, half: bool) -> None:
    if is_parameter:
        require_finite(value, f"parameter {name}")
    stored = value
    if half and is_parameter and value.dtype == torch.float32:
        cast = value.to(torch.float16)
        if bool(torch.isfinite(cast).all()):
            stored = cast
            state.dense_dtype[name] = (torch.float16, torch.float32)
    state.plain[name] = stored


def wanted_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """State names and shapes that a file for this model must hold, tied names included, masks left out.

    Raises:
        ModelError: a tensor of the model is sharded, so that no file can fill it.
    """
    state: Mapping[str, object] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if isinstance(value, Tensor):
            require_whole(value, name)
    return {name: tuple(v.shape) for name, v in state.items() if isinstance(v, Tensor) and not is_mask(name)}
