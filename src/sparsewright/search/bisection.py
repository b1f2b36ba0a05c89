"""Bisection of a front by true evaluations: few of them, each one also correcting the prediction."""

import math
from collections.abc import Callable, Mapping, Sequence

from ..core import BudgetError
from .sensitivity import Sensitivity
from .space import CostTable
from .sweep import Pick, fastest_within_loss


def fastest_within_drop(
    picks: Sequence[Pick],
    table: CostTable,
    sensitivity: Sensitivity,
    true_drop: Callable[[Pick], float],
    allowed: float,
    evaluations: int = 6,
    size_bytes: float | None = None,
) -> tuple[Pick, Sensitivity]:
    """Bisect the front, slow to fast, for the fastest plan whose true drop is within the budget.

    After every true evaluation the predicted losses are brought into the user's unit; once a pick inside and one
    outside are known, new plans are solved for between them, where a power law through both meets the budget: true
    drops grow faster than the sum of predicted losses.

    Args:
        picks: from `sweep`, slowest first.
        table: costs.
        sensitivity: what the picks' losses were predicted by.
        true_drop: evaluates a pick (with recovery, where the caller recovers).
        allowed: largest drop, in the unit of `true_drop`.
        evaluations: at most so many calls of `true_drop`.
        size_bytes: bound that new plans must keep too.

    Raises:
        BudgetError: even the plan of least loss drops more.
    """
    raw = sensitivity.losses(table)
    points: list[tuple[float, float]] = []
    inside: Pick | None = None
    outside: Pick | None = None
    low, high = 0, len(picks) - 1
    tried: dict[tuple[int, ...], float] = {}

    def try_(pick: Pick) -> bool:
        tried[pick.choices] = true_drop(pick)
        points.append((pick.loss, tried[pick.choices]))
        return tried[pick.choices] <= allowed

    if picks and not any(picks[0].choices):
        # Dense loses nothing; no evaluation is spent on it.
        inside, low = picks[0], 1
    # Until both sides were truly seen.
    while low <= high and len(tried) < evaluations and not (inside is not None and inside.choices in tried and outside):
        middle = _guess(picks, low, high, points, allowed)
        if try_(picks[middle]):
            inside, low = picks[middle], middle + 1
        else:
            outside, high = picks[middle], middle - 1
    while inside is not None and outside is not None and len(tried) < evaluations:
        goal = _loss_between(inside, outside, tried, allowed)
        try:
            between = fastest_within_loss(table, raw, goal, size_bytes)
        except BudgetError:
            break
        if between.choices in tried or outside.speedup / inside.speedup < 1.01:
            break
        if try_(between):
            inside = between
        else:
            outside = between
    if inside is None:
        least = min(tried.values(), default=float("nan"))
        raise BudgetError(
            f"No plan tried keeps the quality drop within {allowed:.4g}: the least that was seen is {least:.4g} at "
            f"{picks[0].speedup:.2f}x. Allow a larger drop, ask for less speed, add recovery, or add milder patterns."
        )
    return inside, sensitivity.calibrated(points)


def _loss_between(inside: Pick, outside: Pick, tried: Mapping[tuple[int, ...], float], allowed: float) -> float:
    """Predicted loss at which a power law through both picks drops as much as is allowed, kept off the ends."""
    floor = allowed / 50
    low, high = max(tried.get(inside.choices, 0.0), floor), max(tried[outside.choices], floor)
    share = math.log(max(allowed, floor) / low) / math.log(high / low) if high > low else 0.5
    share = min(max(share, 0.2), 0.9)
    least = max(inside.loss, 1e-3 * outside.loss)
    return float(least * (outside.loss / least) ** share)


def _guess(picks: Sequence[Pick], low: int, high: int, points: Sequence[tuple[float, float]], allowed: float) -> int:
    """Where to try next: the middle at first, then where the calibrated prediction meets the budget."""
    if not points:
        return (low + high) // 2
    square = sum(loss * loss for loss, _ in points)
    scale = sum(loss * max(0.0, drop) for loss, drop in points) / square if square > 0 else 0.0
    wanted = max((n for n in range(low, high + 1) if picks[n].loss * scale <= allowed), default=low)
    # A prediction that points at an end makes slow progress when it is wrong: stay off the ends by a quarter.
    margin = (high - low) // 4
    return min(max(wanted, low + margin), high - margin)
