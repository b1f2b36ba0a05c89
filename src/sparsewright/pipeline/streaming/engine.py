"""Where layers are solved: an engine takes tasks and gives answers, the same bits whichever it is.

The layers of one block do not depend on each other once their statistics are there, so that they may be solved in any
place at any time. Blocks do: each is calibrated on what the sparse blocks before it give.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from torch import Tensor

from ...core import LayerPlan, LayerStats, Registry
from ...models import LayerResult
from ...sparsifiers import AbstractSparsifier, Sparsified


@final
@dataclass(frozen=True, eq=False)
class LayerTask:
    """One layer to be solved.

    Attributes:
        layer: its name.
        weight: `(out, in)`.
        planned: its pattern and the type of its values.
        sparsifier, method: the method and its name.
        stats: of its inputs, if the method needs them.
        shares_stats: whether another task has the same stats.
    """

    layer: str
    weight: Tensor
    planned: LayerPlan
    sparsifier: AbstractSparsifier
    method: str
    stats: LayerStats | None
    shares_stats: bool


@final
@dataclass(frozen=True, eq=False)
class LayerAnswer:
    """A solved layer: its name, mask and weight, and what became of it."""

    layer: str
    sparsified: Sparsified
    result: LayerResult


class AbstractEngine(ABC):
    """Solves tasks; answers are bit-equal for every engine at the same number of threads and instruction set."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Ready to solve inside the block.

        Raises:
            MissingPackageError: the engine's package is not installed.
        """
        yield

    @abstractmethod
    def solve(self, tasks: Iterable[LayerTask]) -> Iterator[LayerAnswer]:
        """Answers in the order of the tasks. Tasks are drawn as they can be taken; keep no reference to one."""


engines: Registry[AbstractEngine] = Registry("engines", AbstractEngine)
