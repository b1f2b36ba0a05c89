"""The exact multiple-choice knapsack: one choice per layer, the least objective, every cost inside its window.

Solved as an integer programme by HiGHS (Huangfu and Hall 2018, doi:10.1007/s12532-017-0130-5) through scipy: exact,
because the gap is closed to zero; a plan that leans on the solver's tolerance is cut off and the solver asked again.
Ties go to the earlier choice of the earlier layer.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from ..core import BudgetError

Matrix = Sequence[Sequence[float]]

# HiGHS works with absolute tolerances of 1e-7 to 1e-6; figures are scaled so that these mean nothing.
_SCALE = 1e4
_SLACK = 1e-9
_MOST_CUTS = 50


@final
@dataclass(frozen=True)
class Window:
    """One bounded cost.

    Attributes:
        name: for messages, for instance `seconds at batch 1`.
        costs: per layer, per choice.
        limit: the sum over layers may not be larger.
    """

    name: str
    costs: Matrix
    limit: float


def choose(objective: Matrix, windows: Sequence[Window] = ()) -> list[int]:
    """Pick one choice per layer.

    Args:
        objective: per layer, per choice; the sum is made least. Layers may have different numbers of choices.
        windows: costs of the same form, each with its limit.

    Returns:
        Index of the chosen choice, per layer.

    Raises:
        BudgetError: no pick fits; the message names the window and the tightest limit that can be had.
    """
    sizes = [len(row) for row in objective]
    _check(sizes, objective, windows)
    if not sizes:
        return []
    if not windows:
        return [int(np.argmin(row)) for row in objective]
    _check_feasible(sizes, windows)
    chosen = _solve(sizes, objective, windows)
    if chosen is None:
        raise BudgetError(_tightest(sizes, windows))
    return chosen


def total(costs: Matrix, chosen: Sequence[int]) -> float:
    """Sum of the chosen costs."""
    return float(sum(row[pick] for row, pick in zip(costs, chosen)))


def inside(window: Window, chosen: Sequence[int]) -> bool:
    """Whether the pick keeps the window, up to the rounding of the sum."""
    return total(window.costs, chosen) <= window.limit + _SLACK * max(abs(window.limit), 1e-30)


def _check(sizes: list[int], objective: Matrix, windows: Sequence[Window]) -> None:
    if 0 in sizes:
        raise BudgetError("Every layer needs at least one choice; give at least `dense`.")
    for name, costs in [("objective", objective), *((window.name, window.costs) for window in windows)]:
        if [len(row) for row in costs] != sizes:
            raise BudgetError(f"The costs {name!r} do not have the form of the objective: one row per layer.")
        if not all(np.isfinite(np.asarray(row, dtype=float)).all() for row in costs):
            raise BudgetError(f"The costs {name!r} must be finite. Leave out the choices that cannot run.")


def _check_feasible(sizes: list[int], windows: Sequence[Window]) -> None:
    for window in windows:
        least = [int(np.argmin(row)) for row in window.costs]
        if not inside(window, least):
            raise BudgetError(
                f"No plan keeps {window.name} within {window.limit:.6g}: the tightest that can be had is "
                f"{total(window.costs, least):.6g}. Loosen this budget, or add sparser patterns."
            )


@contextmanager
def _native_output_to_stderr() -> Iterator[None]:
    """HiGHS prints a line of its own now and then, which must not get between the lines of a program's JSON."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError):
        # There is no standard output to keep clean.
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        # What C wrote waits in its own buffer.
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _solve(sizes: list[int], objective: Matrix, windows: Sequence[Window]) -> list[int] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    layer = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_matrix((np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(sizes), len(layer)))
    goal = _flat(objective)
    # Only differences inside a layer matter; the least of each layer is taken off so that scaling sees the rest.
    goal = goal - np.repeat([min(row) for row in objective], sizes)
    scale = float(goal.max()) or 1.0
    # Ties go to the earlier choice: a nudge far below the figures' own precision.
    position = np.concatenate([np.arange(size) for size in sizes])
    goal = goal / scale * _SCALE + position * 1e-6 / max(1, len(sizes))
    rows, limits = [], []
    for window in windows:
        costs = _flat(window.costs)
        unit = float(np.abs(costs).max()) or 1.0
        rows.append(costs / unit * _SCALE)
        limits.append(window.limit / unit * _SCALE)
    cuts: list[NDArray[np.float64]] = []
    for _ in range(_MOST_CUTS):
        matrix = np.array([*rows, *cuts])
        bounds = np.array([*limits, *([len(sizes) - 1.0] * len(cuts))])
        with _native_output_to_stderr():
            result = milp(
                goal,
                integrality=np.ones(len(goal), dtype=np.int64),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(matrix, -np.inf, bounds)],
                options={"mip_rel_gap": 0.0},
            )
        if result.x is None:
            return None
        chosen = _picked(result.x, sizes)
        if all(inside(window, chosen) for window in windows):
            return chosen
        cut = np.zeros(len(goal))
        cut[np.cumsum([0, *sizes[:-1]]) + chosen] = 1.0
        cuts.append(cut)
    return None


def _flat(costs: Matrix) -> NDArray[np.float64]:
    return np.array([value for row in costs for value in row], dtype=np.float64)


def _picked(x: NDArray[np.float64], sizes: list[int]) -> list[int]:
    ends = np.cumsum(sizes)
    return [int(np.argmax(x[end - size : end])) for size, end in zip(sizes, ends)]


def _tightest(sizes: list[int], windows: Sequence[Window]) -> str:
    """Each window can be kept alone, but not all together: say how far the last would have to open."""
    for number in range(1, len(windows)):
        held, last = windows[:number], windows[number]
        chosen = _solve(sizes, last.costs, held)
        if chosen is not None and not inside(last, chosen):
            others = " and ".join(window.name for window in held)
            return (
                f"No plan keeps {last.name} within {last.limit:.6g} together with {others}: the tightest that can be "
                f"had is {total(last.costs, chosen):.6g}. Loosen one of these budgets, or add sparser patterns."
            )
    names = " and ".join(window.name for window in windows)
    return f"No plan keeps {names} together. Loosen one of these budgets, or add sparser patterns."
