"""`load`: a bundle becomes a model that runs. Everything is checked before the model is touched."""

import os
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core import AbstractPattern, Dense, require_module
from ..hardware import apply_calibration_once
from ..models import drop_mask, keep_mask
from ..nn import SparseTensor, as_parameter, kept_places
from .architecture import build, require_same
from .header import DTYPES
from .manifest import Level, PackedLayer
from .reader import BundleReader
from .state import layer_of, wanted_shapes, weight_name

# Up to here the sha256 check costs less than a tenth of a second or so; larger files are checked on request.
_CHECKED_BYTES = 256 * 1024 * 1024


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    level: str | None = None,
    *,
    masked: bool = False,
    check: bool | None = None,
) -> nn.Module:
    """Load a bundle.

    Args:
        path: the file.
        model: the architecture with any weights, filled in place; None builds transformers and timm models from the
            manifest, without remote code, network or imports by name, in evaluation mode.
        level: name of a level; None: the densest.
        masked: layers come back as `sparsify_` leaves them, to train on: dense weights with zeros, and `weight_mask`
            beside them. Both are those of the model that was saved, to the last bit, unless `value_dtype` or `plan`
            rounded them; int8 values come back multiplied by their scales.
        check: compare every tensor with its sha256; None: for files up to 256 MiB.

    Returns:
        The model: layers hold packed weights (`SparseTensor`), ready to run, also those that were masked when they were
        saved, unless `masked` is given; layers without a packed kernel hold zeros and their `weight_mask`. Tensors
        stored as float16 come back as they were.

    Raises:
        FileError: the file cannot be read.
        ModelError: `model` is no module.
        BundleError: it is damaged, hostile, or does not fit the model; the model is unchanged.
        MissingPackageError: transformers or timm is needed and missing.
    """
    if model is not None:
        require_module(model)
    with BundleReader(path) as reader:
        chosen = reader.level(level)
        shapes = reader.shapes(chosen)
        if check or (check is None and reader.size_bytes <= _CHECKED_BYTES):
            for name in reader.manifest.tensors:
                reader.check_digest(name)
        target = build(reader.manifest.model, shapes, reader.size_bytes) if model is None else model
        require_same(shapes, wanted_shapes(target))
        replacements, masks = _read(reader, chosen, target, masked)
    _assign(target, replacements, masks)
    apply_calibration_once()
    return target


Masks = dict[str, tuple[Tensor, AbstractPattern]]


def _read(reader: BundleReader, level: Level, model: nn.Module, masked: bool) -> tuple[dict[str, Tensor], Masks]:
    """Everything that will be assigned: state name -> tensor, layer name -> mask and its pattern."""
    state = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {}
    masks: Masks = {}
    for name, entry in reader.plain_entries.items():
        stored = reader.tensor(name)
        original = reader.manifest.dense_dtype.get(name, (entry.dtype, entry.dtype))[1]
        # A copy: the file may be replaced or deleted while the model lives.
        found[name] = stored.to(_device(state[name]), DTYPES[original], copy=True)
    for layer, record in level.layers.items():
        name = weight_name(layer)
        packed = reader.packed(level, layer).to(_device(state[name]))
        # No kernel multiplies with bitmasks: the layer comes back as it was before packing, zeros and mask.
        if masked or record.layout == "bitmask":
            found[name] = _as_stored(packed.unpack().to(DTYPES[record.dtype]), record)
            if record.layout == "bitmask" or not isinstance(record.pattern, Dense):
                masks[layer] = _as_stored(kept_places(packed), record), record.pattern
        else:
            own = replace(packed, tensors={key: tensor.clone() for key, tensor in packed.tensors.items()})
            seen = record.parameter_shape if record.view == "conv2d" else None
            tensor = SparseTensor(own, record.view == "transposed", DTYPES[record.dtype], seen)
            found[name] = as_parameter(tensor)
    for name, goal in reader.manifest.aliases.items():
        found[name] = found[goal]
        if (shared := layer_of(goal)) in masks:
            masks[layer_of(name)] = masks[shared]
    return found, masks


def _device(held: Any) -> torch.device:
    """Where the model keeps the tensor now; the CPU if it was never allocated."""
    return torch.device("cpu") if held.is_meta else torch.device(held.device)


def _as_stored(matrix: Tensor, record: PackedLayer) -> Tensor:
    """A `(out, in)` tensor in the shape of the module's parameter."""
    return matrix.T.contiguous() if record.view == "transposed" else matrix.reshape(record.parameter_shape).clone()


def _assign(model: nn.Module, found: dict[str, Tensor], masks: Masks) -> None:
    tied: dict[int, Tensor] = {}
    for name, tensor in found.items():
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        held = module._parameters.get(leaf)
        if held is None:
            module._buffers[leaf] = tensor
        elif isinstance(tensor, SparseTensor):
            module._parameters[leaf] = cast(nn.Parameter, tensor)
        else:
            # A packed weight is frozen as a rule; the dense one in its place learns as any other.
            learns = held.requires_grad or isinstance(held, SparseTensor)
            needs_gradient = learns and tensor.is_floating_point()
            parameter = tied.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=needs_gradient))
            module._parameters[leaf] = cast(nn.Parameter, parameter)
    for name, module in model.named_modules():
        if name in masks:
            keep_mask(module, *masks[name])
        else:
            drop_mask(module)
