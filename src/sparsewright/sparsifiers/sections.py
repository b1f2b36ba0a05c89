"""Cuts a weight into sections of columns, each masked on its own while a sweep goes over the columns.

Patterns that hold within `m` columns (N:M and its kin) are solved section by section. Counted patterns (densities,
blocks) may keep anything anywhere, so a first look at the whole layer says how many each section keeps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core import NM, NMG, AbstractPattern, Block, PatternError, Transposable, Unstructured
from ..solvers import solve_mask, spread, top_counts, top_n, unit_scores

# Columns whose effect on all later ones is applied at once (SparseGPT's lazy updates).
LAZY_COLUMNS = 128


class AbstractSections(ABC):
    """Section width, and the mask of a section from its scores."""

    width: int

    @abstractmethod
    def choose(self, scores: Tensor, start: int) -> Tensor:
        """Mask of columns `start ...`: `(out, columns)` float64 scores of as many columns -> bool."""


@final
@dataclass(frozen=True)
class LocalSections(AbstractSections):
    """The pattern itself holds in every section."""

    pattern: AbstractPattern
    width: int

    def choose(self, scores: Tensor, start: int) -> Tensor:
        """Solve the pattern on the section."""
        return solve_mask(scores, self.pattern)


@final
@dataclass(frozen=True, eq=False)
class LayerCounts(AbstractSections):
    """Unstructured: as many per section as the first look gave it."""

    first: Tensor
    width: int = LAZY_COLUMNS

    def choose(self, scores: Tensor, start: int) -> Tensor:
        """The best of the section, ties to the lower flat index."""
        count = int(self.first[:, start : start + scores.shape[1]].sum())
        return top_n(scores.reshape(-1), count).view(scores.shape)


@final
@dataclass(frozen=True, eq=False)
class GroupCounts(AbstractSections):
    """Blocks: as many units per row group and section as the first look gave it."""

    units: Tensor
    pattern: Block
    width: int

    def choose(self, scores: Tensor, start: int) -> Tensor:
        """The best units of each row group by their summed score, after a cut off one that stays dense."""
        rows, columns = self.pattern.rows, self.pattern.columns
        sums = unit_scores(scores, rows, columns)
        if self.pattern.edge == "dense" and scores.shape[1] % columns:
            sums[:, -1] = torch.inf
        first = start // columns
        counts = self.units[:, first : first + sums.shape[1]].sum(1)
        return spread(top_counts(sums, counts), rows, columns, (scores.shape[0], scores.shape[1]))


def sections(pattern: AbstractPattern, saliency: Tensor) -> AbstractSections:
    """How a sweep masks a layer.

    Args:
        pattern: where zeros may be.
        saliency: `(out, in)` float64, the first look: what each weight's removal would cost in the whole layer.

    Raises:
        PatternError: the pattern is of a kind that this page does not know.
    """
    match pattern:
        case NM() | Transposable():
            return LocalSections(pattern, pattern.m * pattern.width)
        case NMG():
            return LocalSections(pattern, pattern.chunk)
        case Unstructured():
            return LayerCounts(solve_mask(saliency, pattern))
        case Block():
            units = solve_mask(saliency, pattern)[:: pattern.rows, :: pattern.columns]
            width = max(1, LAZY_COLUMNS // pattern.columns) * pattern.columns
            return GroupCounts(units, pattern, width)
    raise PatternError(f"A column sweep cannot mask {pattern}. Use the sparsifier 'wanda' or 'magnitude' for it.")
