"""The local engine: one layer after the other in this process, with one layer's memory."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import final

from ...models import solve_layer
from ...sparsifiers import factors_used_once
from .engine import AbstractEngine, LayerAnswer, LayerTask, engines


@final
@engines.register("local")
class LocalEngine(AbstractEngine):
    """One layer after the other in this process."""

    def solve(self, tasks: Iterable[LayerTask]) -> Iterator[LayerAnswer]:
        """One after the other."""
        # map keeps no reference to a task, so that the memory of the last one is free for the next.
        return map(_solve, tasks)


def _solve(task: LayerTask) -> LayerAnswer:
    # Layers with one gram matrix share its factors; those of a layer that stands alone would only take memory.
    with nullcontext() if task.shares_stats else factors_used_once():
        sparsified, result = solve_layer(
            task.layer, task.weight, task.planned, task.sparsifier, task.method, task.stats
        )
    return LayerAnswer(task.layer, sparsified, result)
