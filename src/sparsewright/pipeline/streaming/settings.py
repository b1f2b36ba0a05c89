"""What the bytes of a streamed model depend on: a run that goes on must agree with the one before it in all of it."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core import Plan, instruction_set
from ...models import Batch
from ...sparsifiers import AbstractSparsifier
from .source import StoredTensors

# Where an object lies in memory differs in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def settings_of(
    source: StoredTensors,
    config: Path | None,
    model: nn.Module,
    plan: Plan,
    sparsifiers: Mapping[str, AbstractSparsifier],
    methods: Mapping[str, str],
    batches: Sequence[Batch],
) -> dict[str, str]:
    """Word for a message -> short text.

    Args:
        source: the files.
        config: the `config.json` that the architecture was built by; None where a factory built it.
        model: the architecture.
        plan: of all layers.
        sparsifiers, methods: layer name -> method and its name, for each layer that becomes sparse.
        batches: calibration data.
    """
    built_by = "" if config is None else hashlib.sha256(config.read_bytes()).hexdigest()
    own = {name: [methods[name], type(sparsifiers[name]).__qualname__, _fields(sparsifiers[name])] for name in methods}
    return {
        "source": source.fingerprint(),
        "model": _digest([built_by, _architecture(model)]),
        "plan": _digest([plan.to_data(), [[name, plan.layers[name].pattern.edge] for name in methods]]),
        "method": _digest(own),
        "data": _digest_of_batches(batches),
        # Products of matrices may differ in their last bits with each of these.
        "number of threads": str(torch.get_num_threads()),
        "instruction set": instruction_set(),
        "release of torch": torch.__version__,
    }


def _architecture(model: nn.Module) -> list[object]:
    """What the answers of a model depend on beside the tensors in its files."""
    state = [[name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()]
    # Heads, steps and epsilons show neither in shapes nor, in many modules, in their text.
    plain = [
        [name, type(module).__qualname__, key, repr(value)]
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if key != "training" and isinstance(value, bool | int | float | str)
    ]
    # No file holds these (the frequencies of rotary embeddings).
    buffers = Batch(kwargs={name: value for name, value in model.named_buffers() if not value.is_meta})
    # Of transformers it is the text of everything that was configured.
    config = _ADDRESS.sub("", str(getattr(model, "config", "")))
    return [_ADDRESS.sub("", repr(model)), state, plain, config, _digest_of_batches([buffers])]


def _fields(sparsifier: AbstractSparsifier) -> str:
    """Name and value of everything that was set on a method."""
    if dataclasses.is_dataclass(sparsifier):
        values = {field.name: getattr(sparsifier, field.name) for field in dataclasses.fields(sparsifier)}
    else:
        values = vars(sparsifier)
    return _ADDRESS.sub("", repr(sorted(values.items())))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _digest_of_batches(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for number, batch in enumerate(batches):
        for key, value in [*enumerate(batch.args), *batch.kwargs.items()]:
            found.update(f"{number} {key} ".encode())
            if isinstance(value, Tensor):
                plain = value.detach().cpu().contiguous()
                found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
                found.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
            else:
                found.update(repr(value).encode())
    return found.hexdigest()
