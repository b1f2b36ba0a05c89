"""Judges of transposable masks that share nothing with the solvers: rational arithmetic and a linear program."""

from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor


def tiles_of(matrix: Tensor, rows: int, columns: int) -> list[tuple[tuple[int, int], Tensor]]:
    """Tiles of `(out, in)` with their place, edge tiles smaller."""
    out, in_ = matrix.shape
    return [
        ((i // rows, j // columns), matrix[i : i + rows, j : j + columns])
        for i in range(0, out, rows)
        for j in range(0, in_, columns)
    ]


def rational_gap(
    scores: Tensor, mask: Tensor, a: Tensor, b: Tensor, row_keep: int, column_keep: int, at_most: bool
) -> Fraction:
    """What row prices `a` and column prices `b` allow one tile to keep beyond what its mask keeps, exactly."""
    rows, columns = [Fraction(float(v)) for v in a], [Fraction(float(v)) for v in b]
    gap = Fraction(0)
    for i, line in enumerate(scores.double().tolist()):
        for j, score in enumerate(line):
            reduced = Fraction(score) - rows[i] - columns[j]
            gap += max(Fraction(0), -reduced if mask[i, j] else reduced)
    if at_most:
        assert min(rows[: mask.shape[0]]) >= 0
        assert min(columns[: mask.shape[1]]) >= 0
        gap += sum(rows[i] * (row_keep - int(mask[i].sum())) for i in range(mask.shape[0]))
        gap += sum(columns[j] * (column_keep - int(mask[:, j].sum())) for j in range(mask.shape[1]))
    return gap


def best_sum(
    scores: Tensor,
    row_keep: int,
    column_keep: int,
    at_most: bool,
    keep: Tensor | None = None,
    drop: Tensor | None = None,
) -> float | None:
    """The largest kept sum of one tile by HiGHS, whose corners are whole; None where no mask obeys."""
    rows, columns = scores.shape
    sums = np.zeros((rows + columns, rows * columns))
    for i in range(rows):
        sums[i, i * columns : (i + 1) * columns] = 1
    for j in range(columns):
        sums[rows + j, j::columns] = 1
    counts = [row_keep] * rows + [column_keep] * columns
    low = keep.flatten().int().tolist() if keep is not None else [0] * scores.numel()
    high = (~drop).flatten().int().tolist() if drop is not None else [1] * scores.numel()
    bounds = {"A_ub": sums, "b_ub": counts} if at_most else {"A_eq": sums, "b_eq": counts}
    found = linprog(-scores.double().flatten().numpy(), bounds=list(zip(low, high)), method="highs", **bounds)
    return None if found.status else -float(found.fun)


def draw(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Scores of a kind that solvers find easy or hard."""
    generator = torch.Generator().manual_seed(seed)
    gauss = torch.randn(shape, generator=generator)
    uniform = torch.rand(shape, generator=generator)
    if kind == "low rank":
        left = torch.randn(*shape[:-1], 3, generator=generator)
        right = torch.randn(*shape[:-2], 3, shape[-1], generator=generator)
        scales = torch.randn(*shape[:-2], 1, shape[-1], generator=generator).exp()
        return (left @ right * scales).abs()
    return {
        "gauss": gauss.abs(),
        "signed": gauss,
        "negative": -gauss.abs(),
        "heavy tails": (gauss / uniform.clamp_min(1e-3)).abs(),
        "bfloat16": gauss.abs().bfloat16(),
        "float16": gauss.abs().half(),
        "float64": gauss.abs().double() * (1 + 1e-12 * uniform.double()),
        "seventy percent zeros": gauss.abs() * (uniform > 0.7),
        "eight levels": (8 * uniform).floor(),
        "two levels": (2 * uniform).floor() - 0.5,
        "all alike": torch.full(shape, 0.3),
        "zeros": torch.zeros(shape),
        "near the largest float": gauss.abs() * 1e37,
        "subnormal": gauss.abs() * 1e-40,
        "near the largest double": gauss.abs().double() * 1e300,
        "wide": (8 * gauss.double()).exp(),
    }[kind]


KINDS = (
    "gauss",
    "signed",
    "negative",
    "heavy tails",
    "low rank",
    "bfloat16",
    "float16",
    "float64",
    "seventy percent zeros",
    "eight levels",
    "two levels",
    "all alike",
    "zeros",
    "near the largest float",
    "subnormal",
    "near the largest double",
    "wide",
)

# Spanning more than 2^24 in units of the last bit: prices are rounded there.
ROUNDED = ("float64", "near the largest double", "wide")
