"""`load`: a bundle becomes a model that runs. Everything is checked before the model is touched."""

import os
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..hardware import apply_calibration_once
from ..layouts import PackedWeight
from ..layouts.storage import unpack_bits
from ..models import MASK
from ..nn import SparseTensor, as_parameter
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
    check: bool | None = None,
) -> nn.Module:
    """Load a bundle.

    Args:
        path: the file.
        model: the architecture with any weights, filled in place; None builds transformers and timm models from the
            manifest, without remote code, network or imports by name, in evaluation mode.
        level: name of a level; None: the densest.
        check: compare every tensor with its sha256; None: for files up to 256 MiB.

    Returns:
        The model: layers hold packed weights (`SparseTensor`), ready to run; layers without a packed kernel hold zeros
        and their `weight_mask`. Tensors stored as float16 come back as they were.

    Raises:
        FileError: the file cannot be read.
        BundleError: it is damaged, hostile, or does not fit the model; the model is unchanged.
        MissingPackageError: transformers or timm is needed and missing.
    """
    with BundleReader(path) as reader:
        chosen = reader.level(level)
        shapes = reader.shapes(chosen)
        if check or (check is None and reader.size_bytes <= _CHECKED_BYTES):
            for name in reader.manifest.tensors:
                reader.check_digest(name)
        target = build(reader.manifest.model, shapes, reader.size_bytes) if model is None else model
        require_same(shapes, wanted_shapes(target))
        replacements, masks = _read(reader, chosen, target)
    _assign(target, replacements, masks)
    apply_calibration_once()
    return target


def _read(reader: BundleReader, level: Level, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Everything that will be assigned: state name -> tensor, layer name -> mask."""
    state = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name, entry in reader.plain_entries.items():
        stored = reader.tensor(name)
        original = reader.manifest.dense_dtype.get(name, (entry.dtype, entry.dtype))[1]
        # A copy: the file may be replaced or deleted while the model lives.
        found[name] = stored.to(_device(state[name]), DTYPES[original], copy=True)
    for layer, record in level.layers.items():
        name = weight_name(layer)
        packed = reader.packed(level, layer).to(_device(state[name]))
        if record.layout == "bitmask":
            # No kernel multiplies with these: the layer comes back as it was before packing, zeros and mask.
            found[name] = _as_stored(packed.unpack().to(DTYPES[record.dtype]), record)
            masks[layer] = _as_stored(_mask_of(packed), record)
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


def _mask_of(packed: PackedWeight) -> Tensor:
    if packed.layout != "bitmask":
        return packed.unpack() != 0
    return unpack_bits(packed.tensors["index"], packed.shape[0] * packed.shape[1]).view(packed.shape)


def _as_stored(matrix: Tensor, record: PackedLayer) -> Tensor:
    """A `(out, in)` tensor in the shape of the module's parameter."""
    return matrix.T.contiguous() if record.view == "transposed" else matrix.reshape(record.parameter_shape).clone()


def _assign(model: nn.Module, found: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
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
            needs_gradient = held.requires_grad and tensor.is_floating_point()
            parameter = tied.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=needs_gradient))
            module._parameters[leaf] = cast(nn.Parameter, parameter)
    for name, module in model.named_modules():
        if name in masks:
            module.register_buffer(MASK, masks[name], persistent=True)
        elif MASK in module._buffers:
            del module._buffers[MASK]
