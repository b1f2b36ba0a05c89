"""Material of the contract suites: patterns of every form, shapes, exact counts, all masks of a small weight."""

import functools
import math
from itertools import combinations

import torch
from torch import Tensor

from ..core import NM, NMG, AbstractPattern, Block, Dense, LayerStats, Transposable, Unstructured, parse_pattern

Shape = tuple[int, int]

# Every form of pattern at least twice; a contract takes those that its subject is able to handle.
PATTERN_TEXTS = (
    "1:4",
    "2:4",
    "4:8",
    "16:32",
    "2:4x2",
    "2:4x4",
    "1:4x8",
    "2:4x16",
    "3:8x3",
    "2:4t",
    "4:8t",
    "2:4tx4",
    "3:6:4",
    "1:4:2",
    "10%",
    "50%",
    "4x1@50%",
    "16x1@25%",
    "8x1@75%",
    "4x4@25%",
    "1x8@50%",
)

# A whole number of every group, a short last row group, a single row, one that is taller than wide.
SHAPES: tuple[Shape, ...] = ((48, 96), (37, 64), (1, 32), (130, 32))

# Few enough weights to try every mask; the largest only where four rows depend on each other.
_SMALL_SHAPES: tuple[Shape, ...] = ((1, 8), (3, 4), (6, 2))
_FOUR_ROWS: Shape = (4, 4)


def kept_exactly(pattern: AbstractPattern, shape: Shape) -> int:
    """How many weights a full mask of this pattern and shape keeps."""
    out, in_ = shape
    match pattern:
        case Dense():
            return out * in_
        case Unstructured():
            return pattern.kept_weights(shape)
        case Block():
            return out * pattern.kept_blocks(in_) * pattern.columns
        case NM() | Transposable():
            return out * in_ // pattern.m * pattern.n
        case NMG():
            return out // pattern.m * pattern.n * in_ + _kept_in_short_block(pattern, out % pattern.m, in_)
    raise AssertionError(f"The contract suites do not know patterns such as {pattern}.")


def _kept_in_short_block(pattern: NMG, rows: int, in_: int) -> int:
    """What the columns can keep of a last block of fewer rows: those patterns first that have most of them."""
    found = sorted(
        (sum(row < rows for row in kept) for kept in combinations(range(pattern.m), pattern.n)), reverse=True
    )
    slots = [count for count in found for _ in range(pattern.g)]
    whole, rest = divmod(in_, pattern.chunk)
    return whole * sum(slots) + sum(slots[:rest])


def row_unit(pattern: AbstractPattern) -> int | None:
    """Consecutive rows that are solved together; None if all rows depend on each other."""
    match pattern:
        case Unstructured():
            return None
        case Transposable():
            return pattern.m * pattern.size
        case NMG():
            return pattern.m
    return pattern.group


def fitting_shapes(pattern: AbstractPattern) -> list[Shape]:
    """The example shapes that the pattern fits."""
    return [shape for shape in SHAPES if pattern.fits(shape)]


def small_shapes(pattern: AbstractPattern) -> list[Shape]:
    """The shapes of at most 16 weights that the pattern fits."""
    four_rows = (row_unit(pattern) or 0) >= 4
    shapes = (*_SMALL_SHAPES, _FOUR_ROWS) if four_rows else _SMALL_SHAPES
    return [shape for shape in shapes if pattern.fits(shape)]


@functools.cache
def masks_of(text: str, shape: Shape) -> Tensor:
    """Every full mask of a pattern: `(count, out * in)` bool; at most 16 weights.

    Found by trying all subsets of the right size with `check_mask`, so it shares nothing with any solver.
    """
    pattern = parse_pattern(text)
    weights = math.prod(shape)
    assert weights <= 16, f"Trying all masks of {weights} weights takes too long."
    bits = (torch.arange(2**weights)[:, None] >> torch.arange(weights)) & 1
    right_size = bits[bits.sum(1) == kept_exactly(pattern, shape)].to(torch.bool)
    return torch.stack([mask for mask in right_size if not pattern.check_mask(mask.view(shape))])


def sample_scores(shape: Shape, seed: int = 0) -> Tensor:
    """Positive scores `(out, in)` float32, no two alike in practice."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).abs() + 1e-3


def sample_weight(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian weight `(out, in)`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sample_stats(in_: int, tokens: int = 200, dead: int = 0, seed: int = 0) -> LayerStats:
    """Moments of correlated inputs of unlike size.

    Args:
        in_: input dimension.
        tokens: rows of the sample.
        dead: how many inputs never fire.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(in_, in_, generator=generator, dtype=torch.float64) / math.sqrt(in_)
    inputs = torch.randn(tokens, in_, generator=generator, dtype=torch.float64) @ (mixing + torch.eye(in_))
    # Shuffled, so that neighbours under one choice differ as much as any two inputs.
    inputs *= torch.linspace(0.2, 3.0, in_, dtype=torch.float64)[torch.randperm(in_, generator=generator)]
    if dead:
        inputs[:, :: max(1, in_ // dead)] = 0
    return LayerStats(tokens, inputs.mean(0), inputs.square().sum(0), inputs.T @ inputs)
