"""What the bytes of a streamed model depend on: a run that goes on must agree with the one before it in all of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...core import Plan, instruction_set
from ...models import Batch
from ...sparsifiers import AbstractSparsifier
from .source import StoredTensors


def settings_of(
    source: StoredTensors,
    model: nn.Module,
    plan: Plan,
    sparsifiers: Mapping[str, AbstractSparsifier],
    methods: Mapping[str, str],
    batches: Sequence[Batch],
) -> dict[str, str]:
    """Word for a message -> short text.

    Args:
        source: the files.
        model: the architecture.
        plan: of all layers.
        sparsifiers, methods: layer name -> method and its name, for each layer that becomes sparse.
        batches: calibration data.
    """
    state = [[name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()]
    own = {name: [methods[name], type(sparsifiers[name]).__qualname__] for name in methods}
    return {
        "source": source.fingerprint(),
        "model": _digest([type(model).__qualname__, state]),
        "plan": _digest([plan.to_data(), [[name, plan.layers[name].pattern.edge] for name in methods]]),
        "method": _digest(own),
        "data": _digest_of_batches(batches),
        # Products of matrices may differ in their last bits with each of these.
        "number of threads": str(torch.get_num_threads()),
        "instruction set": instruction_set(),
        "release of torch": torch.__version__,
    }


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
