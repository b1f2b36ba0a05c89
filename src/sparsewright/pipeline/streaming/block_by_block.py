"""`sparsify_file`: a model that does not fit into memory is made sparse on disk, block by block.

Each block is read, calibrated on what the sparse blocks before it give, sparsified, written and let go: the order of
`sparsify_`, and its bits. In memory are one block, or one layer of it with its gram matrix, and the activations that
enter the next block.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...core import DataError, Edge, FileError, ModelError, ValueType
from ...hardware import return_freed_memory
from ...models import (
    LayerRef,
    SparsifyResult,
    adapter_of,
    batches_of,
    layers,
    methods_of,
    outcome,
    quiet,
    resolve_plan,
)
from ...models.data import fitting
from ...models.flow import Call
from ...models.sparsify import PlanLike, Progress
from ...sparsifiers import AbstractSparsifier
from .destination import file_names, open_destination
from .engine import AbstractEngine, engines
from .outline import outline
from .parts import PartWriter
from .settings import settings_of
from .skeleton import Factory, Skeleton, build
from .skipped_blocks import SkippedBlocks
from .source import open_stored


def sparsify_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    plan: PlanLike,
    *,
    model: Factory | None = None,
    method: str | AbstractSparsifier = "magnitude",
    data: Any = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    edge: Edge = "error",
    value_dtype: ValueType | None = None,
    engine: str | AbstractEngine = "local",
    resume: bool = True,
    progress: Progress | None = None,
) -> SparsifyResult:
    """Sparsify a model on disk, one block in memory at a time.

    Weights and masks are those that `sparsify_` gives for the model in memory, to the last bit. Anonymous resident
    memory stays below 1.5 times the largest block in float32, three times the largest gram matrix (float64) and the
    activations of all batches at one place of the model, for the methods magnitude, wanda and sparsegpt; alps takes up
    to four gram matrices more for its eigenvectors. To that end freed memory goes back to the system at once, here and
    in the rest of the process (`hardware.keep_freed_memory` turns that off again).

    What is done survives any end of the process: the same call goes on behind the last block that was written whole,
    and ends with the same bytes.

    Args:
        source: a safetensors file, or a folder with `model.safetensors` or its shards and their index.
        destination: a file (`.safetensors`) or a folder; appears when it is whole. It holds the tensors of the source
            under their names and a `weight_mask` beside every sparse `weight`.
        plan: see `sparsify_`.
        model: builds any torch model, its parameters are put on the meta device; None: the `config.json` of
            transformers that lies beside the weights tells.
        method: see `sparsify_`.
        data: an iterable of batches, for methods that need them; see `batches_of`.
        include, exclude: see `layers`.
        edge, value_dtype: see `sparsify_`.
        engine: `local`, or `ray`: the layers of a block are solved on the machines of a Ray cluster; the same bits.
        resume: False throws away what an interrupted run left.
        progress: called as `progress(done, total, layer name)`.

    Returns:
        As `sparsify_`; seconds are those of this call.

    Raises:
        FileError: source missing or cut short; destination exists, is full or read-only; what an earlier run left is
            of another model, plan, method or data.
        ModelError: the architecture is unknown or is not that of the files; or its blocks do not feed one another.
        PlanError, PatternError, DataError, NumericError: see `sparsify_`.
        MissingPackageError: transformers or Ray is needed and not installed.
    """
    started = time.perf_counter()
    for word, path in (("source", source), ("destination", destination)):
        if not isinstance(path, str | os.PathLike):
            raise FileError(f"The {word} is the path of a file or folder, got {path!r:.80}. Give its path.")
    if not isinstance(engine, str | AbstractEngine):
        raise ModelError(
            f"engine is the name of an engine or one of your own, got {engine!r:.80}. Names are "
            f"{', '.join(engines.names())}."
        )
    return_freed_memory()
    place = Path(source).expanduser()
    stored = open_stored(place)
    folder = place if place.is_dir() else place.parent
    skeleton = Skeleton.of(build(folder, stored, model), stored)
    blocks = adapter_of(skeleton.model).blocks(skeleton.model)
    refs = layers(skeleton.model, include, exclude, mask_only=True)
    full, chosen = resolve_plan(plan, refs, edge, value_dtype)
    sparsifiers, methods = methods_of(full, chosen, method, data is not None)
    calibrated = [ref for ref in chosen if sparsifiers[ref.name].needs != "none"]
    batches = batches_of(data) if data is not None and calibrated else []
    if calibrated and not batches:
        raise DataError("Calibration needs data. Pass data=[...] with at least one batch.")
    if calibrated and not blocks:
        raise ModelError("This model has no repeated blocks to take one at a time. Load it and call sparsify_ instead.")
    parts = outline(skeleton, stored, blocks, chosen)
    goal = Path(destination).expanduser().absolute()
    config = folder / "config.json" if model is None else None
    settings = settings_of(stored, config, skeleton.model, full, sparsifiers, methods, batches)
    files = parts.rows(skeleton, stored, file_names(goal, stored))
    solver = engines.get(engine) if isinstance(engine, str) else engine
    masks = [mask for each in parts.masks.values() for mask in each]
    with solver.open(), open_destination(goal, files, settings, resume) as under_way:
        writer = PartWriter(skeleton, parts, stored, under_way, full, sparsifiers, methods, solver, batches, progress)
        with quiet(skeleton.model), adapter_of(skeleton.model).calibrating(skeleton.model):
            _make_all(writer, SkippedBlocks(skeleton, stored, blocks), calibrated)
        results = {ref.name: writer.done[ref.name] for ref in chosen}
        done = outcome(full, refs, methods, results, time.perf_counter() - started)
        masked = {mask.rpartition(".")[0]: list(under_way.stored.shape(mask)) for mask in masks}
        under_way.finish(done.plan.to_json() + "\n", folder if model is None else None, masked)
    return done


def _make_all(writer: PartWriter, skipped: SkippedBlocks, calibrated: Sequence[LayerRef]) -> None:
    """Every part, in the order in which the model runs them."""
    parts = writer.outline
    if not calibrated:
        for part in (parts.front, *parts.blocks.values(), parts.back):
            writer.make(part, _needs_no_data)
        return
    names = {ref.name for ref in calibrated}
    back_needs = any(ref.name in names for ref in parts.back.layers)
    # Before anything is written: data that do not fit show here.
    order, calls = skipped.capture(writer.batches)
    writer.make(parts.front, _needs_no_data)
    of_interest = [any(ref.name in names for ref in parts.blocks[name].layers) for name, _ in order]
    needing = [place for place, wanted in enumerate(of_interest) if wanted]
    # Blocks behind the last one of interest need not run.
    last = len(order) - 1 if back_needs else max(needing, default=-1)
    hidden: list[Tensor] = []
    for place, (name, block) in enumerate(order):
        part = parts.blocks[name]

        def forward(number: int, name: str = name, block: nn.Module = block) -> object:
            with fitting(number):
                return calls[number][name].run(block)

        writer.make(part, forward)
        following = order[place + 1][0] if place + 1 < len(order) else None
        if place < last or (back_needs and following is None):
            with writer.in_memory(part, writer.destination.stored):
                hidden = _propagate(calls, name, following, block)
        else:
            for by_block in calls:
                del by_block[name]

    def around(number: int) -> object:
        with fitting(number):
            return skipped.run(writer.batches[number], hidden[number], order[-1][0])

    writer.make(parts.back, around)


def _propagate(calls: Sequence[dict[str, Call]], name: str, following: str | None, block: nn.Module) -> list[Tensor]:
    """Run a block on every batch and hand its output to the next; behind the last one, the outputs themselves."""
    outputs = []
    for number, by_block in enumerate(calls):
        call = by_block.pop(name)
        with fitting(number):
            hidden = call.run(block)
        if following is None:
            outputs.append(hidden)
        else:
            by_block[following].hidden = hidden
    return outputs


def _needs_no_data(number: int) -> object:
    raise AssertionError("a part without calibrated layers is never run")
