"""Sweeps: the best plan at each of many speeds, so that quality can be traded against time with open eyes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ..core import BudgetError
from .budget import Budget
from .front import pareto_front
from .knapsack import Window, choose, total
from .space import CostTable

Losses = Sequence[Sequence[float]]


@final
@dataclass(frozen=True)
class Pick:
    """A plan before it is one: per layer the index of its choice in the table.

    Attributes:
        label: what made it.
        kind: `search`, `uniform` or `baseline`.
        choices: index per layer.
        loss: predicted, in the unit of the losses.
        seconds: predicted end to end, per batch label in the table's order.
        speedup: the least over the batches.
        size_bytes: whole model.
    """

    label: str
    kind: str
    choices: tuple[int, ...]
    loss: float
    seconds: tuple[float, ...]
    speedup: float
    size_bytes: float


def describe(table: CostTable, losses: Losses, choices: Sequence[int], label: str, kind: str) -> Pick:
    """Costs and loss of given choices."""
    return Pick(
        label=label,
        kind=kind,
        choices=tuple(choices),
        loss=total(losses, choices),
        seconds=tuple(table.total_s(choices, batch) for batch in table.labels),
        speedup=min(table.speedup(choices, batch) for batch in table.labels),
        size_bytes=table.total_bytes(choices),
    )


def fastest_speedup(table: CostTable) -> float:
    """The largest speed-up that holds at every batch when nothing else is asked."""
    # Least time relative to dense, summed over the batches, is not the max-min, but its minimum per batch bounds it.
    picks = [[int(np.argmin(row)) for row in rows] for rows in table.seconds.values()]
    return min(table.speedup(pick, label) for pick, label in zip(picks, table.labels))


def best_at_speedup(table: CostTable, losses: Losses, speedup: float, size_bytes: float | None = None) -> Pick:
    """The plan of least predicted loss that is so fast at every batch, and so small.

    Raises:
        BudgetError: no plan is; the message names the tightest value.
    """
    return _solve(table, losses, _windows(table, speedup, size_bytes), f"{speedup:.2f}x")


def fastest_within_loss(table: CostTable, losses: Losses, loss: float, size_bytes: float | None = None) -> Pick:
    """The fastest plan (mean over batches, each relative to its dense time) whose predicted loss is at most `loss`.

    Raises:
        BudgetError: no plan is.
    """
    dense = table.dense_pick()
    relative = [
        [
            sum(table.seconds[label][layer][n] / table.total_s(dense, label) for label in table.labels)
            for n in range(len(choices))
        ]
        for layer, choices in enumerate(table.choices)
    ]
    windows = [Window("predicted loss", losses, loss), *_windows(table, None, size_bytes)]
    chosen = _choose_reduced(table, relative, losses, windows)
    return describe(table, losses, chosen, f"loss {loss:.4g}", "search")


def sweep(table: CostTable, losses: Losses, budget: Budget, points: int = 12) -> list[Pick]:
    """Plans over the whole range of speeds, evenly spaced in time, from the budget's speed (or dense) to the fastest.

    Returns:
        Distinct plans, slowest first; predicted loss rises along the list.

    Raises:
        BudgetError: the speed or size that the budget asks for cannot be had at all.
    """
    slowest = budget.speedup or 1.0
    fastest = fastest_speedup(table)
    smallest = table.rest_bytes + sum(min(row) for row in table.size_bytes)
    if fastest < slowest * (1 - 1e-9):
        raise BudgetError(
            f"No plan is {slowest:g}x faster at every batch: the tightest that can be had, the fastest that these "
            f"patterns allow, is {fastest:.2f}x. Ask for less, or add sparser patterns."
        )
    if budget.size_bytes is not None and smallest > budget.size_bytes:
        raise BudgetError(
            f"No plan fits {budget.size_bytes:,} bytes: the smallest file that these patterns allow has about "
            f"{smallest:,.0f}. Allow more, or add sparser patterns."
        )
    found: dict[tuple[int, ...], Pick] = {}
    # The budget's own corner must be there; an error here is the user's answer.
    first = best_at_speedup(table, losses, slowest, budget.size_bytes)
    found[first.choices] = first
    if fastest > slowest:
        for inverse in np.linspace(1 / slowest, 1 / fastest, points)[1:]:
            try:
                pick = best_at_speedup(table, losses, 1 / float(inverse), budget.size_bytes)
            except BudgetError:
                # Beyond what all batches reach together, or what fits the size.
                continue
            found.setdefault(pick.choices, pick)
    front = pareto_front(found.values(), loss=lambda pick: pick.loss, cost=lambda pick: 1 / pick.speedup)
    return front[::-1]


def uniform_picks(table: CostTable, losses: Losses) -> list[Pick]:
    """One plan per choice that any layer has: this choice wherever it is to be had, dense elsewhere."""
    choices = list(dict.fromkeys(choice for row in table.choices for choice in row[1:]))
    return [
        describe(
            table, losses, [row.index(choice) if choice in row else 0 for row in table.choices], choice.text, "uniform"
        )
        for choice in choices
    ]


def random_picks(table: CostTable, losses: Losses, count: int = 3, seed: int = 0) -> list[Pick]:
    """Plans by lot: the least that a search must beat."""
    generator = np.random.default_rng(seed)
    drawn = [[int(generator.integers(0, len(row))) for row in table.choices] for _ in range(count)]
    return [describe(table, losses, pick, f"random {number}", "baseline") for number, pick in enumerate(drawn)]


def greedy_pick(table: CostTable, losses: Losses, guess: Losses, speedup: float) -> Pick:
    """Take the step with the least guessed loss per second saved, until the speed is reached at every batch.

    Args:
        table: costs.
        losses: what the plan is then described by.
        guess: what the steps are chosen by, for instance `magnitude_errors`.
        speedup: where to stop; where it cannot be reached, all steps that save time are taken.
    """
    pick = table.dense_pick()
    dense = table.dense_pick()
    totals = {label: table.total_s(dense, label) for label in table.labels}

    def relative(layer: int, choice: int) -> float:
        return sum(table.seconds[label][layer][choice] / totals[label] for label in table.labels)

    while min(table.speedup(pick, label) for label in table.labels) < speedup:
        steps = [
            ((guess[layer][n] - guess[layer][now]) / (relative(layer, now) - relative(layer, n)), layer, n)
            for layer, now in enumerate(pick)
            for n in range(len(table.choices[layer]))
            if relative(layer, n) < relative(layer, now)
        ]
        if not steps:
            break
        _, layer, choice = min(steps)
        pick[layer] = choice
    return describe(table, losses, pick, f"magnitude greedy {speedup:.2f}x", "baseline")


def _windows(table: CostTable, speedup: float | None, size_bytes: float | None) -> list[Window]:
    windows = []
    if speedup is not None:
        for label in table.labels:
            limit = table.total_s(table.dense_pick(), label) / speedup - table.rest_s[label]
            windows.append(Window(f"seconds in layers at {label} ({speedup:.3g}x)", table.seconds[label], limit))
    if size_bytes is not None:
        windows.append(Window("bytes in layers", table.size_bytes, size_bytes - table.rest_bytes))
    return windows


def _solve(table: CostTable, losses: Losses, windows: Sequence[Window], label: str) -> Pick:
    chosen = _choose_reduced(table, losses, losses, windows)
    return describe(table, losses, chosen, label, "search")


def _choose_reduced(table: CostTable, objective: Losses, losses: Losses, windows: Sequence[Window]) -> list[int]:
    """The knapsack without choices that another one of the layer beats in everything: same optimum, smaller."""
    kept = []
    for layer in range(len(table.names)):
        figures = [
            (objective[layer][n], losses[layer][n], *(window.costs[layer][n] for window in windows))
            for n in range(len(table.choices[layer]))
        ]
        kept.append([n for n in range(len(figures)) if not any(_beats(figures, m, n) for m in range(len(figures)))])
    reduced = [
        Window(w.name, [[w.costs[layer][n] for n in kept[layer]] for layer in range(len(kept))], w.limit)
        for w in windows
    ]
    picks = choose([[objective[layer][n] for n in kept[layer]] for layer in range(len(kept))], reduced)
    return [kept[layer][pick] for layer, pick in enumerate(picks)]


def _beats(figures: Sequence[tuple[float, ...]], first: int, second: int) -> bool:
    """At least as good in everything; of equals the earlier one stays."""
    a, b = figures[first], figures[second]
    return first != second and all(x <= y for x, y in zip(a, b)) and (a != b or first < second)
