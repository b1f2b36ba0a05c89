"""Masks that others made: read from safetensors and npz files, from state dicts and modules of torch.nn.utils.prune.

Files are trusted in nothing: no pickle, no name that the model lacks, no array larger than its layer.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import prune

from ..core import FileError, ModelError, suggest

K = TypeVar("K")
V = TypeVar("V")

ORIGINAL, MASK_SUFFIX = ".weight_orig", ".weight_mask"
# What a mask's name may end with besides its layer's.
_SUFFIXES = (ORIGINAL, MASK_SUFFIX, ".mask", ".weight")
# The header of an array, and no value of a mask takes more bytes.
_HEADER_BYTES, _VALUE_BYTES = 4096, 8


def read_arrays(path: Path, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """All arrays of a `.safetensors` or `.npz` file by name.

    Args:
        path: the file.
        sizes: name of a layer, or of a tensor of the model -> how many values it has: no array may have more.

    Raises:
        FileError: missing, damaged, of another kind, or with pickled or too large arrays.
        ModelError: an array is for a layer that the model does not have.
    """
    if not path.is_file():
        raise FileError(f"{path} is no file. Give a .safetensors or .npz file of masks by layer name.")
    if path.suffix not in (".safetensors", ".npz"):
        raise FileError(f"Masks are read from .safetensors and .npz files, got {path.name}. Save them as one of these.")
    try:
        return _read_npz(path, sizes) if path.suffix == ".npz" else _read_safetensors(path)
    except (SafetensorError, zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
        raise FileError(f"{path} cannot be read as masks ({error}). Write it again.") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        # The format itself holds every tensor inside the file, so none is larger than that.
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dictionary


def _read_npz(path: Path, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            key = entry.filename.removesuffix(".npy")
            most = sizes[key if key in sizes else known_layer(key, sizes)]
            if entry.file_size > _VALUE_BYTES * most + _HEADER_BYTES:
                raise FileError(
                    f"{path}: the array {key!r} is larger than its layer of {most} weights. Write it again."
                )
            with archive.open(entry) as stream:
                first = np.lib.format.read_magic(stream) == (1, 0)
                header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, _, dtype = header(stream)
            if dtype.hasobject or int(np.prod(shape, dtype=object)) > most:
                raise FileError(
                    f"{path}: the array {key!r} is of shape {shape} and type {dtype}; masks are numbers, one for "
                    f"each of the layer's {most} weights. Write it again."
                )
            with archive.open(entry) as stream:
                found[key] = torch.from_numpy(np.lib.format.read_array(stream, allow_pickle=False).copy())
    return found


def known_layer(key: str, layers: Mapping[str, Any]) -> str:
    """The layer that a mask is for.

    Raises:
        ModelError: the model does not have it.
    """
    name = key if key in layers else next((key.removesuffix(end) for end in _SUFFIXES if key.endswith(end)), key)
    if name not in layers:
        raise ModelError(f"The masks name {name!r}, which is no layer of this model. {suggest(name, layers)}")
    return name


def as_mask(values: Any, name: str) -> Tensor:
    """An array of zeros and ones as bool, True = keep.

    Raises:
        ModelError: it is no array, or holds other values.
    """
    try:
        mask = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"The mask of {name} must be an array of numbers, got {type(values).__name__}.") from error
    if mask.layout != torch.strided:
        mask = mask.to_dense()
    if mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
        raise ModelError(f"The mask of {name} must hold 0 (removed) and 1 (kept) only. Pass weight != 0 for weights.")
    return mask != 0


def pruned_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose `weight` torch.nn.utils.prune computes at every call, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if "weight_orig" in module._parameters
        and "weight_mask" in module._buffers
        and "weight" in _pruned_names(module)
    }


@contextmanager
def unpruned(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take torch's pruning off weights and biases, for good; it is put back as it was if the block fails."""
    kept = [
        (
            module,
            dict(module._parameters),
            dict(module._buffers),
            dict(module._forward_pre_hooks),
            {name: vars(module)[name] for name in _pruned_names(module) if name in vars(module)},
        )
        for module in modules
    ]
    values = [(each, each.data) for _, parameters, *_ in kept for each in parameters.values() if each is not None]
    try:
        for module in modules:
            for name in _pruned_names(module):
                prune.remove(module, name)
        yield
    except BaseException:
        for module, parameters, buffers, hooks, plain in kept:
            _put_back(module._parameters, parameters)
            _put_back(module._buffers, buffers)
            _put_back(module._forward_pre_hooks, hooks)
            vars(module).update(plain)
        # torch writes what is left of a weight into the parameter of the whole one.
        for parameter, value in values:
            parameter.data = value
        raise


def _put_back(now: dict[K, V], before: Mapping[K, V]) -> None:
    now.clear()
    now.update(before)


def _pruned_names(module: nn.Module) -> list[str]:
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of pruned modules as that of plain ones: `weight_orig` times `weight_mask` is `weight`.

    Raises:
        ModelError: a mask is missing or of another shape.
    """
    plain = {}
    for key, value in state.items():
        if key.endswith(ORIGINAL):
            name = key.removesuffix(ORIGINAL)
            mask = state.get(name + MASK_SUFFIX)
            if mask is None or mask.shape != value.shape:
                came = None if mask is None else tuple(mask.shape)
                raise ModelError(f"{key} of shape {tuple(value.shape)} needs a {MASK_SUFFIX[1:]} of it, got {came}.")
            plain[f"{name}.weight"] = torch.where(as_mask(mask, name), value, 0)
        elif not (key.endswith(MASK_SUFFIX) and key.removesuffix(MASK_SUFFIX) + ORIGINAL in state):
            plain[key] = value
    return plain
