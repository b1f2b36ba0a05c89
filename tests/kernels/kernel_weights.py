"""Weights and masks for the kernel tests: any pattern, any shape, the same for the same seed."""

import torch
from torch import Tensor

from sparsewright.core import AbstractPattern, Transposable
from sparsewright.solvers import solve_mask


def random_weight(out: int, in_: int) -> Tensor:
    return torch.randn(out, in_, generator=torch.Generator().manual_seed(out * 4096 + in_)) / in_**0.5


def obeying_mask(weight: Tensor, rule: AbstractPattern) -> Tensor:
    """A full mask: the best one, or for transposable ones, which have slow solvers, a cyclic one."""
    out, in_ = weight.shape
    row, column = torch.arange(out)[:, None], torch.arange(in_)
    if isinstance(rule, Transposable):
        return (row // rule.size + column // rule.size) % rule.m < rule.n
    return solve_mask(weight.abs(), rule)
