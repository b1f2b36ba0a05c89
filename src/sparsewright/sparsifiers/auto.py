"""Auto: every other sparsifier tries a layer, and the one that leaves the least reconstruction error has it.

`learned` is not asked: it takes longer than all others together, and ALPS leaves less."""

from dataclasses import replace
from typing import ClassVar, cast, final

from torch import Tensor

from ..core import AbstractPattern, LayerStats
from .base import AbstractSparsifier, Needs, Sparsified, sparsifiers
from .gram import reconstruction_error

NAME = "auto"


@final
@sparsifiers.register(NAME)
class Auto(AbstractSparsifier):
    """The best of all registered sparsifiers that are not costly, plug-ins included; ties go to the earlier name."""

    needs: ClassVar[Needs] = "gram"

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """Ask each, and name the winner."""
        return _best(
            weight, cast(LayerStats, stats), {n: s.choose(weight, stats, pattern, layer) for n, s in _others()}
        )

    def choose_int8(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """Ask each for rounded weights, and name the winner."""
        return _best(
            weight, cast(LayerStats, stats), {n: s.choose_int8(weight, stats, pattern, layer) for n, s in _others()}
        )


def _others() -> list[tuple[str, AbstractSparsifier]]:
    return [(name, sparsifier) for name, sparsifier in sparsifiers.items() if name != NAME and not sparsifier.costly]


def _best(weight: Tensor, stats: LayerStats, found: dict[str, Sparsified]) -> Sparsified:
    name = min(found, key=lambda name: reconstruction_error(weight, found[name].weight, stats))
    return replace(found[name], sparsifier=name)
