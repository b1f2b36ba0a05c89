"""Tensor sparsifiers: what of any tensor (weight, activation, gradient) is kept, judged by its own values.

| kind | needs at once | here | may be inline |
| --- | --- | --- | --- |
| streaming | one element | `KeepAll`, `Threshold`, `RandomFraction` | yes |
| blocking | one block of the last dimension | `NOfM`, `BlockFraction` | yes |
| materializing | the whole tensor | `GlobalFraction`, `PatternFraction` | no |

Source of the taxonomy: STen, arXiv:2304.07613. There it is documentation; here `SparseFormat` obeys it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, final

import torch
from torch import Tensor

from ..core import NM, AbstractPattern, Dense, PatternError, Unstructured, is_number, is_whole, parse_pattern
from ..solvers import solve_mask


@final
class Kind(Enum):
    """How much of a tensor a sparsifier must see before it can say what it keeps of an element."""

    STREAMING = "streaming"
    BLOCKING = "blocking"
    MATERIALIZING = "materializing"

    @property
    def may_be_inline(self) -> bool:
        """Whether an operator may apply it to each part of its result while it computes it.

        It may where any cut along the leading dimensions gives the same choice as the whole tensor.
        """
        return self is not Kind.MATERIALIZING


class AbstractTensorSparsifier(ABC):
    """Chooses what to keep of a tensor.

    Laws (checked in the tests for each one here): the result is zero where nothing is kept and unchanged elsewhere;
    gradients pass where it keeps; streaming and blocking ones, random ones apart, choose the same for a tensor cut
    along its leading dimensions as for the whole.

    Attributes:
        kind: decides whether it may be inline.
    """

    kind: ClassVar[Kind] = Kind.MATERIALIZING

    @abstractmethod
    def keep(self, tensor: Tensor) -> Tensor:
        """What to keep.

        Args:
            tensor: any shape, floating point, detached.

        Returns:
            bool of the same shape, True = keep.
        """

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor with zeros where nothing is kept; differentiable, the choice counts as constant."""
        return torch.where(self.keep(tensor.detach()), tensor, 0)


@final
@dataclass(frozen=True)
class KeepAll(AbstractTensorSparsifier):
    """Keep everything: a pure change of layout."""

    kind = Kind.STREAMING

    def keep(self, tensor: Tensor) -> Tensor:
        """All of it."""
        return torch.ones_like(tensor, dtype=torch.bool)

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


@final
@dataclass(frozen=True)
class Threshold(AbstractTensorSparsifier):
    """Keep what has a magnitude of at least `least`."""

    least: float
    kind = Kind.STREAMING

    def __post_init__(self) -> None:
        if not is_number(self.least) or self.least < 0:
            raise PatternError(f"A threshold is a magnitude, a number of 0 or more, got {self.least!r}.")

    def keep(self, tensor: Tensor) -> Tensor:
        """`|x| >= least`."""
        return tensor.abs() >= self.least


@final
@dataclass(frozen=True)
class RandomFraction(AbstractTensorSparsifier):
    """Keep each element with probability `density`, by torch's own generator of the tensor's device."""

    density: float
    kind = Kind.STREAMING

    def __post_init__(self) -> None:
        _check_density(self.density)

    def keep(self, tensor: Tensor) -> Tensor:
        """One draw per element."""
        return torch.rand(tensor.shape, device=tensor.device) < self.density


@final
@dataclass(frozen=True)
class NOfM(AbstractTensorSparsifier):
    """Keep the `n` largest magnitudes of every `m` consecutive elements of the last dimension; ties to the lower."""

    n: int
    m: int
    kind = Kind.BLOCKING

    def __post_init__(self) -> None:
        NM(self.n, self.m)  # the one place that checks these numbers

    def keep(self, tensor: Tensor) -> Tensor:
        """Exactly n of every m."""
        return _largest_of_blocks(tensor, self.n, self.m)


@final
@dataclass(frozen=True)
class BlockFraction(AbstractTensorSparsifier):
    """Keep the `round(density * block)` largest magnitudes (at least one) of every block of the last dimension."""

    density: float
    block: int
    kind = Kind.BLOCKING

    def __post_init__(self) -> None:
        _check_density(self.density)
        if not is_whole(self.block, 1):
            raise PatternError(f"A block is a whole number of elements, 1 or more, got {self.block!r}.")

    def keep(self, tensor: Tensor) -> Tensor:
        """The same number in every block."""
        return _largest_of_blocks(tensor, max(1, round(self.density * self.block)), self.block)


@final
@dataclass(frozen=True)
class GlobalFraction(AbstractTensorSparsifier):
    """Keep the `round(density * size)` largest magnitudes (at least one) of the whole tensor; ties to the lower."""

    density: float
    kind = Kind.MATERIALIZING

    def __post_init__(self) -> None:
        _check_density(self.density)

    def keep(self, tensor: Tensor) -> Tensor:
        """As many in any tensor of this size."""
        count = max(1, round(self.density * tensor.numel()))
        return _largest(tensor.reshape(-1), count).view(tensor.shape)


@final
@dataclass(frozen=True)
class PatternFraction(AbstractTensorSparsifier):
    """Keep the largest magnitudes that a pattern allows, all leading dimensions taken as rows.

    Materializing for every pattern, since rows may share a choice. The solver looks at values, so torch.compile breaks
    its graph here.
    """

    pattern: AbstractPattern
    kind = Kind.MATERIALIZING

    def keep(self, tensor: Tensor) -> Tensor:
        """The solved mask of the magnitudes."""
        rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.view(1, 1)
        return solve_mask(rows.abs(), self.pattern).view(tensor.shape)


def sparsifier_of(text: "str | AbstractPattern | AbstractTensorSparsifier") -> AbstractTensorSparsifier:
    """The sparsifier that a pattern or its text means for a tensor: the largest magnitudes that it allows."""
    if isinstance(text, AbstractTensorSparsifier):
        return text
    pattern = parse_pattern(text)
    if isinstance(pattern, Dense):
        return KeepAll()
    if isinstance(pattern, NM) and pattern.group == 1:
        return NOfM(pattern.n, pattern.m)
    return GlobalFraction(pattern.density) if isinstance(pattern, Unstructured) else PatternFraction(pattern)


def _check_density(density: float) -> None:
    if not is_number(density) or not 0.0 < density <= 1.0:
        raise PatternError(f"A density is a number above 0 and at most 1, got {density!r}.")


def _largest_of_blocks(tensor: Tensor, n: int, block: int) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[-1] % block:
        size = tuple(tensor.shape)
        raise PatternError(
            f"Blocks of {block} need a last dimension that is a multiple of {block}, got a tensor of shape {size}. "
            "Mark another tensor, or choose another block."
        )
    return _largest(tensor.unflatten(-1, (-1, block)), n).flatten(-2)


def _largest(tensor: Tensor, n: int) -> Tensor:
    # A stable sort, and nothing that looks at values: torch.compile takes it whole.
    order = tensor.abs().argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(tensor, dtype=torch.bool).scatter(-1, order[..., :n], True)
