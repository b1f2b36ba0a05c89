"""`save`: one level, one file, whole or absent, the same bytes for the same model."""

import hashlib
import os
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core import BundleError, Plan, atomic_write
from ..layouts import layouts
from .architecture import describe
from .header import DTYPE_NAMES, PAD_PREFIX, header_bytes, lay_out, table_digest
from .manifest import VALUE_TYPES, Level, Manifest, PackedLayer, require_plain
from .reader import DIGEST_KEY, MANIFEST_KEY, plane_name
from .state import ModelState, flatten

_LEVEL = "L1"


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    dense_dtype: Literal["fp32", "fp16"] = "fp32",
    value_dtype: Literal["fp32", "fp16"] | None = None,
    plan: Plan | None = None,
    quality: Any = None,
    cost: Any = None,
    source: str | None = None,
    config: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    created: datetime | None = None,
) -> None:
    """Write a model into one safetensors file with a manifest.

    The same model gives the same bytes: no date is written unless `created` is passed.

    Args:
        model: packed layers are stored as they are, masked layers are packed on the way, all others stay dense. `load`
            gives masked layers back packed, to run; with `masked=True` as dense weights with zeros and `weight_mask`,
            to train on. Tied tensors are stored once.
        path: goal; an earlier file stays as it was until the new one is whole.
        dense_dtype: `fp16` stores float32 parameters that are not sparse as float16 (those that overflow it stay); the
            manifest names each, and `load` gives float32 back.
        value_dtype: dtype of stored kept values that are not int8; None: as they are packed. `fp16` halves them, and
            `load` widens them once to what they were packed as, because float32 operands run faster at many tokens.
        plan: patterns and value types for masked layers; without it patterns are those that `sparsify_` remembered,
            where the masks still obey them, else they are read off the masks.
        quality, cost: plain JSON that `inspect` shows: what evaluation gave, what the profile predicts.
        source: where the model came from, for people (`load` never opens it).
        config: settings a timm model was created with, where they are not its default.
        measured, created: plain JSON and a date under the manifest's `measured`, outside the content digest.

    Raises:
        NumericError: a parameter holds NaN or infinity.
        BundleError: something in the state or the arguments cannot be stored.
        ModelError: dropped weights of a masked layer are not zero any more.
        FileError: the folder is read-only, or the disk is full; nothing was changed.
    """
    if dense_dtype not in ("fp32", "fp16"):
        raise BundleError(f"Dense tensors are stored as 'fp32' or 'fp16', got {dense_dtype!r}.")
    if value_dtype not in (None, "fp32", "fp16"):
        raise BundleError(f"Kept values are stored as 'fp32' or 'fp16', got {value_dtype!r}.")
    state = flatten(model, plan, dense_dtype == "fp16")
    tensors: dict[str, Tensor] = dict(state.plain)
    records = _add_planes(state, tensors, value_dtype)
    for name in tensors:
        if name.startswith(PAD_PREFIX):
            raise BundleError(f"Names that begin with {PAD_PREFIX!r} are taken by the format, got {name!r}. Rename it.")
    facts = dict(measured or {})
    if created is not None:
        facts["created"] = created.isoformat()
    manifest = Manifest(
        producer=f"sparsewright {_version()}",
        model=describe(model, source, config),
        levels=(Level(_LEVEL, records, require_plain(quality, "quality"), require_plain(cost, "cost")),),
        tensors={name: hashlib.sha256(raw_bytes(tensor, name)).hexdigest() for name, tensor in tensors.items()},
        dense_dtype={name: (DTYPE_NAMES[a], DTYPE_NAMES[b]) for name, (a, b) in state.dense_dtype.items()},
        aliases=state.aliases,
        measured=require_plain(facts, "measured"),
    )
    _write(Path(path), tensors, manifest)


def _version() -> str:
    try:
        return version("sparsewright")
    except PackageNotFoundError:
        return "unknown"


def _add_planes(state: ModelState, tensors: dict[str, Tensor], value_dtype: str | None) -> dict[str, PackedLayer]:
    """Put the planes of every sparse layer behind the plain tensors and describe them."""
    names = {dtype: name for name, dtype in VALUE_TYPES.items()}
    records = {}
    for layer, sparse in state.layers.items():
        operand = sparse.packed
        keep = value_dtype is None or operand.value_dtype == torch.int8
        packed = operand if keep else operand.with_values(VALUE_TYPES[value_dtype or "fp32"])
        planes = layouts.get(packed.layout).to_storage(packed)
        for plane, tensor in planes.items():
            tensors[plane_name(layer, _LEVEL, plane)] = tensor
        records[layer] = PackedLayer(
            pattern=packed.pattern,
            layout=packed.layout,
            value_dtype=names[packed.value_dtype],
            shape=packed.shape,
            view=sparse.view,
            parameter_shape=sparse.parameter_shape,
            dtype=DTYPE_NAMES[sparse.dtype],
            planes=tuple(planes),
            run_dtype="" if packed is operand else names[operand.value_dtype],
        )
    return records


def raw_bytes(tensor: Tensor, name: str) -> memoryview:
    """The bytes of a tensor in row-major order, little endian.

    Args:
        tensor: any shape; copied only if it is not contiguous or not on the CPU.
        name: for the message.
    """
    if tensor.dtype not in DTYPE_NAMES:
        raise BundleError(f"{name!r} has the dtype {tensor.dtype}, which the format does not know. Convert it first.")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _write(path: Path, tensors: Mapping[str, Tensor], manifest: Manifest) -> None:
    entries = lay_out((name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items())
    text = manifest.to_json()
    # `format: pt` is what other safetensors readers look for.
    metadata = {"format": "pt", MANIFEST_KEY: text, DIGEST_KEY: table_digest(entries, text)}
    head = header_bytes(entries, metadata)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(head)
        for name, entry in entries.items():
            stream.write(bytes(entry.size_bytes) if name.startswith(PAD_PREFIX) else raw_bytes(tensors[name], name))
