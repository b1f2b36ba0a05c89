"""The state of a sparse training as named tensors and one number: for files without pickle, whole or absent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import read_checkpoint, run_digest, write_checkpoint
from .sparse_training import SparseTraining

_PARTS = ("hidden", "prices")


def named_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `SparseTraining.state_dict()` under flat names, `hidden/<parameter>` and `prices/<layer>`."""
    return {f"{part}/{name}": tensor for part in _PARTS for name, tensor in state[part].items()}


def as_state(settings: Mapping[str, Any], step: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state back from what `named_tensors` made; other tensors may stand among them."""
    parts = {
        part: {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
        for part in _PARTS
    }
    return {"settings": dict(settings), "step": step, **parts}


def save_schedule(training: SparseTraining, path: Path) -> None:
    """Write `training.state_dict()`.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    state = training.state_dict()
    settings = state["settings"]
    written = {"digest": run_digest(settings, ()), "settings": settings, "step": state["step"]}
    write_checkpoint(path, named_tensors(state), written)


def load_schedule(training: SparseTraining, path: Path) -> None:
    """Read what `save_schedule` wrote into a training that has been attached.

    Raises:
        FileError: the file is missing or not whole.
        DataError: it belongs to another training.
    """
    held = read_checkpoint(path, run_digest(training.state_dict()["settings"], ()))
    training.load_state_dict(as_state(held.state["settings"], held.state["step"], held.tensors))
