"""Weights and masks for the kernel tests: any pattern, any shape, the same for the same seed."""

from itertools import combinations

import torch
from torch import Tensor

from sparsewright.core import NMG, AbstractPattern, Transposable
from sparsewright.solvers import solve_mask


def random_weight(out: int, in_: int) -> Tensor:
    return torch.randn(out, in_, generator=torch.Generator().manual_seed(out * 4096 + in_)) / in_**0.5


def obeying_mask(weight: Tensor, rule: AbstractPattern) -> Tensor:
    """A full mask: the best one, or for transposable and n:m:g, which have slow solvers, a cyclic one."""
    out, in_ = weight.shape
    row, column = torch.arange(out)[:, None], torch.arange(in_)
    if isinstance(rule, Transposable):
        return (row + column) % rule.m < rule.n
    if isinstance(rule, NMG):
        kept = torch.zeros(rule.chunk // rule.g, rule.m, dtype=torch.bool)
        for place, rows in enumerate(combinations(range(rule.m), rule.n)):
            kept[place, list(rows)] = True
        return kept[column % rule.chunk // rule.g].T.repeat(out // rule.m, 1)
    return solve_mask(weight.abs(), rule)
