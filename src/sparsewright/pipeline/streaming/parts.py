"""One part of the model at a time: copied, calibrated, sparsified, written, let go."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from ...bundle.state import weight_name
from ...core import LayerStats, Plan
from ...hardware import trim_heap
from ...models import Batch, LayerRef, LayerResult
from ...sparsifiers import AbstractSparsifier
from .destination import Destination
from .engine import AbstractEngine, LayerAnswer, LayerTask
from .outline import Outline, Part
from .passes import Forward, Group, Pass, ReadApartError, collect, plan_passes, read_together
from .skeleton import Skeleton
from .source import StoredTensors


@final
@dataclass(eq=False)
class PartWriter:
    """Makes parts whole, or finds that they are.

    Attributes:
        skeleton: the model.
        outline: its parts.
        source: where tensors come from.
        destination: where they go to.
        plan: patterns.
        sparsifiers: layer name -> method.
        methods: layer name -> name of the method.
        engine: solves layers; open.
        batches: calibration data.
        progress: told after each layer.
        done: layer name -> result, of all layers that were written.
    """

    skeleton: Skeleton
    outline: Outline
    source: StoredTensors
    destination: Destination
    plan: Plan
    sparsifiers: Mapping[str, AbstractSparsifier]
    methods: Mapping[str, str]
    engine: AbstractEngine
    batches: Sequence[Batch]
    progress: Callable[[int, int, str], None] | None = None
    done: dict[str, LayerResult] = field(default_factory=dict)

    def make(self, part: Part, forward: Forward) -> None:
        """Write all tensors of a part, unless they are there.

        Args:
            part: what to write.
            forward: runs the part on a batch; called only where a method needs data.

        Raises:
            SparsewrightError: whatever is wrong with the layers, the data or the disk; parts that are whole stay.
        """
        names = self.outline.names(part)
        if not self.destination.is_whole(part.name, names):
            for name in part.copied:
                self.destination.copy(name, self.source)
            if part.layers:
                self._solve_all(part, forward)
            results = {ref.name: dataclasses.asdict(self.done[ref.name]) for ref in part.layers}
            self.destination.commit(part.name, names, results)
            return
        for layer, result in self.destination.parts[part.name]["layers"].items():
            self._finished(layer, LayerResult(**result))

    @contextmanager
    def in_memory(self, part: Part, stored: StoredTensors) -> Iterator[None]:
        """The part's tensors are in the model inside the block, and gone after it."""
        self.skeleton.fill(part.state, stored)
        try:
            yield
        finally:
            self.skeleton.release(part.state)
            trim_heap()

    def _solve_all(self, part: Part, forward: Forward) -> None:
        needs = {ref.name: self.sparsifiers[ref.name].needs for ref in part.layers}
        grams = [ref for ref in part.layers if needs[ref.name] == "gram"]
        groups: list[Group] = []
        if grams:
            with self.in_memory(part, self.source):
                groups = read_together(grams, forward)
        try:
            for wanted in plan_passes(part.layers, needs, groups):
                self._solve(part, wanted, forward)
        except ReadApartError:
            # What the first batch showed does not hold for all of them: every layer by itself, then.
            for wanted in plan_passes(part.layers, needs, [(ref,) for ref in grams]):
                self._solve(part, wanted, forward)

    def _solve(self, part: Part, wanted: Pass, forward: Forward) -> None:
        """Collect what a pass collects and solve its layers; the part itself is out of memory meanwhile."""
        stats: dict[str, LayerStats] = {}
        if wanted.grams or wanted.norms:
            with self.in_memory(part, self.source):
                stats = collect(wanted, self.batches, forward)
        several = {ref.name for group in wanted.grams if len(group) > 1 for ref in group}
        # Drawn one by one, and none of them kept: one layer's weight at a time.
        tasks = map(partial(self._task, stats, several), wanted.layers)
        for answer in self.engine.solve(tasks):
            self._write(wanted, answer)
            del answer
            trim_heap()

    def _task(self, stats: Mapping[str, LayerStats], several: set[str], ref: LayerRef) -> LayerTask:
        return LayerTask(
            layer=ref.name,
            weight=self._weight(ref),
            planned=self.plan.layers[ref.name],
            sparsifier=self.sparsifiers[ref.name],
            method=self.methods[ref.name],
            stats=stats.get(ref.name),
            shares_stats=ref.name in several,
        )

    def _weight(self, ref: LayerRef) -> Tensor:
        """`(out, in)`, read for this call alone."""
        name = weight_name(ref.name)
        self.skeleton.put(name, self.source.read(self.outline.weights[ref.name]).to(self.skeleton.dtype(name)))
        try:
            return ref.get_weight().contiguous()
        finally:
            self.skeleton.release([name])

    def _write(self, wanted: Pass, answer: LayerAnswer) -> None:
        ref = next(ref for ref in wanted.layers if ref.name == answer.layer)
        mask = answer.sparsified.mask
        weight = torch.where(mask, answer.sparsified.weight, torch.zeros((), dtype=answer.sparsified.weight.dtype))
        dtype = self.skeleton.dtype(weight_name(ref.name))
        self.destination.write(self.outline.weights[ref.name], ref.view.as_stored(weight, ref.module).to(dtype))
        for name in self.outline.masks[ref.name]:
            self.destination.write(name, ref.view.as_stored(mask, ref.module))
        self._finished(answer.layer, answer.result)

    def _finished(self, layer: str, result: LayerResult) -> None:
        self.done[layer] = result
        if self.progress is not None:
            self.progress(len(self.done), len(self.methods), layer)
