"""Channel permutations: which input and output channels should share a tile, so that an N:M mask keeps more.

Source: Pool and Yu 2021, "Channel Permutations for N:M Sparsity" (NeurIPS). Here the search swaps two channels of two
tiles at a time, every swap of many pairs of tiles tried at once by the exact mask solver, and takes a swap only if the
kept sum rises: the result never keeps less than the order that came in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from ..core import NM, AbstractPattern, PatternError, Transposable, is_whole, parse_pattern, require_finite
from .base import solve_mask

Axis = Literal["in", "out", "both"]
# Scores that are solved in one call; bounds the memory of a round.
_SCORES_AT_A_TIME = 1 << 22


@final
@dataclass(frozen=True, eq=False)
class ChannelPermutation:
    """A better order of the channels and the mask that it allows.

    `mask[rows][:, columns]` obeys the pattern: a layer that multiplies `weight[rows][:, columns]` takes its inputs in
    the order `columns` and gives its outputs in the order `rows`.

    Attributes:
        rows: `(out,)` int64, the output channel at each place.
        columns: `(in,)` int64, the input channel at each place.
        mask: `(out, in)` bool in the order that came in.
        kept: kept sum of scores, float64 accuracy.
        kept_before: the same in the order that came in.
    """

    rows: Tensor
    columns: Tensor
    mask: Tensor
    kept: float
    kept_before: float


def permute_channels(
    scores: Tensor, pattern: AbstractPattern | str, axis: Axis = "both", rounds: int = 100, seed: int = 0
) -> ChannelPermutation:
    """Search for an order of the channels in which the pattern keeps more.

    The same scores, rounds and seed give the same order. Time: a round solves as many tiles as the matrix has, m x m
    times (n of m).

    Args:
        scores: `(out, in)`, floating point, finite; higher means keep.
        pattern: N:M (rows sharing a choice or not) or transposable N:M, of a size that fits.
        axis: channels that may move; output channels only count for transposable patterns and shared rows.
        rounds: how often tiles are paired anew for each axis; 0 leaves the order as it is.
        seed: of the pairs.

    Raises:
        PatternError: a pattern without tiles, one that does not fit, scores that are no matrix, or another axis.
        NumericError: a score is NaN or infinite.
    """
    rule = parse_pattern(pattern)
    if not isinstance(rule, NM | Transposable):
        raise PatternError(f"Channels are permuted for N:M and transposable patterns, got {rule}: it has no tiles.")
    if axis not in ("in", "out", "both"):
        raise PatternError(f"axis is 'in', 'out' or 'both', got {axis!r}.")
    if not is_whole(rounds, 0):
        raise PatternError(f"rounds is a whole number of 0 or more, got {rounds!r}.")
    if scores.ndim != 2:
        raise PatternError(
            f"Channels are permuted in a matrix (out, in), got scores of shape {tuple(scores.shape)}. Pass matrices "
            "one by one, and a convolution's weight as weight.flatten(1)."
        )
    before = solve_mask(scores, rule)
    require_finite(scores, "scores")
    exact = scores.detach().double()
    kept_before = float(exact[before].sum())
    rows, columns = torch.arange(scores.shape[0]), torch.arange(scores.shape[1])
    generator = torch.Generator().manual_seed(seed)
    tall, wide = _tile(rule)
    for _ in range(2 if axis == "both" else 1):
        if axis != "out":
            columns = columns[_improved(exact[rows][:, columns].T, wide, lambda part: part.mT, rule, rounds, generator)]
        if axis != "in" and tall > 1:
            rows = rows[_improved(exact[rows][:, columns], tall, lambda part: part, rule, rounds, generator)]
    mask = torch.empty_like(before)
    mask[rows[:, None], columns] = solve_mask(exact[rows][:, columns], rule)
    kept = float(exact[mask].sum())
    if kept <= kept_before:
        return ChannelPermutation(
            torch.arange(scores.shape[0]), torch.arange(scores.shape[1]), before, kept_before, kept_before
        )
    return ChannelPermutation(rows, columns, mask, kept, kept_before)


def _tile(rule: NM | Transposable) -> tuple[int, int]:
    """Rows and columns that are chosen together."""
    if isinstance(rule, Transposable):
        return rule.m * rule.size, rule.m * rule.size
    return rule.group, rule.m


def _improved(
    lines: Tensor,
    size: int,
    upright: Callable[[Tensor], Tensor],
    rule: AbstractPattern,
    rounds: int,
    generator: torch.Generator,
) -> Tensor:
    """A better order of the lines of `(channels, length)`, `size` to a tile; `upright` gives `(out, in)` parts."""
    channels = lines.shape[0]
    order = torch.arange(channels)
    tiles = channels // size
    if tiles < 2 or channels % size:
        return order
    swaps = _swaps(size)
    for _ in range(rounds):
        pairs = torch.randperm(tiles, generator=generator)[: tiles // 2 * 2].view(-1, 2)
        # (pairs, 2 * size) places of both tiles; (pairs, swaps, 2 * size) in each order tried, the first as it is.
        places = (pairs[:, :, None] * size + torch.arange(size)).flatten(1)
        tried = places[:, swaps]
        kept = _kept(lines, order[tried].unflatten(2, (2, size)), upright, rule).sum(2)
        best, choice = kept.max(1)
        # Beyond what sums in another order may differ by.
        better = best > kept[:, 0] + 1e-12 * kept[:, 0].abs()
        chosen = tried[torch.arange(len(pairs)), choice][better]
        order[places[better]] = order[chosen]
    return order


def _swaps(size: int) -> Tensor:
    """`(1 + size * size, 2 * size)`: the places of two tiles as they are, and with one of each exchanged."""
    swaps = torch.arange(2 * size).repeat(1 + size * size, 1)
    one, two = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size) + size
    row = torch.arange(1, 1 + size * size)
    swaps[row, one], swaps[row, two] = two, one
    return swaps


def _kept(lines: Tensor, channels: Tensor, upright: Callable[[Tensor], Tensor], rule: AbstractPattern) -> Tensor:
    """Kept sum of every tile of `(*lead, size)` channels, float64 `lead`."""
    lead = channels.shape[:-1]
    flat = channels.reshape(-1, channels.shape[-1])
    at_once = max(1, _SCORES_AT_A_TIME // (flat.shape[1] * lines.shape[1]))
    sums = []
    for some in flat.split(at_once):
        parts = upright(lines[some])
        if isinstance(rule, NM):
            # Parts on top of each other; a last row group that is short is filled up, so that none crosses parts.
            parts = torch.nn.functional.pad(parts, (0, 0, 0, -parts.shape[1] % rule.group))
            mask = solve_mask(parts.flatten(0, 1), rule).view(parts.shape)
        else:
            mask = solve_mask(parts, rule)
        sums.append((parts * mask).flatten(1).sum(1))
    return torch.cat(sums).view(lead)
