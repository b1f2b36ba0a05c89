"""A training checkpoint: one safetensors file that is whole or absent, its state as JSON in the header. No pickle.

One file, because two could be of different steps after a kill between them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import DataError, FileError, atomic_write


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to go on as if nothing had happened.

    Attributes:
        tensors: by name: trained parameters, optimiser moments, random state.
        state: JSON values: run digest, step, budget, losses.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write atomically.

    Raises:
        FileError: the folder cannot be written, or the disk is full; an earlier checkpoint stays.
    """
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(contiguous, temporary, metadata={"state": json.dumps(state, sort_keys=True)})
        except Exception as error:
            raise FileError(f"{path} cannot be written: {error}. Free some space; nothing was changed.") from error


def read_checkpoint(path: Path, digest: str) -> Checkpoint:
    """Read back what `write_checkpoint` wrote.

    Args:
        path: the file.
        digest: of the run that wants to go on; see `run_digest`.

    Raises:
        FileError: the file is not whole.
        DataError: it belongs to another run.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise FileError(
            f"{path} is not a whole checkpoint ({error}). Delete it to start this training anew."
        ) from error
    if state.get("digest") != digest:
        raise DataError(
            f"{path} belongs to another training: model, masks, batches or settings differ. "
            "Delete it, or name another checkpoint file."
        )
    return Checkpoint(tensors, state)


def run_digest(settings: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """Sha256 over settings and tensors: equal digests mean the same training."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        plain = tensor.detach().contiguous().cpu()
        digest.update(f"{tuple(plain.shape)}{plain.dtype}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
