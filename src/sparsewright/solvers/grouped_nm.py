"""Exact n:m:g masks: the balanced choice of one pattern per column that keeps the largest summed score.

Source of the pattern: STen, arXiv:2304.07613, which fills it greedily. Here every tile of `m` rows and `C(m, n) * g`
columns is a transportation problem, solved exactly in native code (`grouped_nm.cpp`).
"""

from typing import cast, final

import torch
from torch import Tensor

from ..core import NMG, AbstractPattern
from ..core.grouped import assign_patterns, mask_of_patterns, row_blocks
from .base import AbstractMaskSolver, Count, solvers

# Sums of scores stay far from the largest double.
_LARGEST_SCORE = 2.0**900


@final
@solvers.register("grouped_nm")
class GroupedNM(AbstractMaskSolver):
    """Give every column the pattern of n:m:g that serves the whole tile best; ties go by one fixed rule."""

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """n:m:g only."""
        return [] if isinstance(pattern, NMG) else ["it solves n:m:g such as 3:6:4"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Every column keeps `n` rows of each block, or its positive ones at most.

        A last block of fewer rows is filled up with rows that nobody wants (`exactly`) or that are worth nothing.
        """
        rule = cast(NMG, pattern)
        out, in_ = scores.shape
        exact = scores.to("cpu", torch.float64)
        largest = float(exact.abs().max())
        if largest > _LARGEST_SCORE:
            exact = exact / (largest / _LARGEST_SCORE)
        wanted = exact if count == "exactly" else exact.clamp_min(0)
        short = out % rule.m
        blocks = row_blocks(wanted, rule.m)
        if short and count == "exactly":
            # More than all real scores of a tile together could make up for.
            last = wanted[out - short :]
            blocks[-1, short:] = -float(last.abs().max() + 1) * 2 * rule.n * min(in_, rule.chunk)
        mask = mask_of_patterns(assign_patterns(blocks, rule.n, rule.m, rule.g), rule.n, rule.m, out)
        return (mask if count == "exactly" else mask & (exact > 0)).to(scores.device)
