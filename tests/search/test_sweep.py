"""A sweep gives the plan of least loss at every speed, checked against all plans there are."""

import itertools

import pytest

from sparsewright.core import BudgetError
from sparsewright.search import (
    Budget,
    best_at_speedup,
    cost_table,
    describe,
    fastest_speedup,
    fastest_within_loss,
    greedy_pick,
    random_picks,
    sweep,
    uniform_picks,
)

PATTERNS = ["2:4", "4x1@75%", "4x1@50%", "4x1@25%"]


@pytest.fixture
def table(board, times):
    return cost_table(board(), times, PATTERNS, rest_bytes=1000)


@pytest.fixture
def losses(table):
    weight = {"a": 1.0, "b": 5.0, "c": 0.2}
    return [
        [
            weight[name] * (1 - choice.pattern.density) ** 2 * (1.5 if choice.pattern.group > 1 else 1.0)
            for choice in row
        ]
        for name, row in zip(table.names, table.choices)
    ]


def all_picks(table, losses):
    for choices in itertools.product(*(range(len(row)) for row in table.choices)):
        yield describe(table, losses, choices, "", "")


@pytest.mark.parametrize("speedup", [1.0, 1.2, 1.5, 1.9])
def test_the_plan_at_a_speed_has_the_least_loss_of_all_plans_so_fast(table, losses, speedup):
    found = best_at_speedup(table, losses, speedup)
    assert found.speedup >= speedup - 1e-9
    assert found.loss == pytest.approx(min(p.loss for p in all_picks(table, losses) if p.speedup >= speedup - 1e-9))


@pytest.mark.parametrize("loss", [0.05, 0.3, 1.0])
def test_the_fastest_plan_within_a_loss_is_the_fastest_of_all(table, losses, loss):
    found = fastest_within_loss(table, losses, loss)
    assert found.loss <= loss + 1e-9
    mean = [
        sum(s / d for s, d in zip(p.seconds, dense_seconds(table))) for p in all_picks(table, losses) if p.loss <= loss
    ]
    assert sum(s / d for s, d in zip(found.seconds, dense_seconds(table))) == pytest.approx(min(mean))


def dense_seconds(table):
    return [table.total_s(table.dense_pick(), label) for label in table.labels]


def test_a_size_budget_holds_together_with_a_speed_budget(table, losses):
    size = 0.6 * table.total_bytes(table.dense_pick())
    found = best_at_speedup(table, losses, 1.3, size)
    assert found.size_bytes <= size
    assert found.speedup >= 1.3 - 1e-9
    able = [p.loss for p in all_picks(table, losses) if p.speedup >= 1.3 - 1e-9 and p.size_bytes <= size]
    assert found.loss == pytest.approx(min(able))


def test_a_speed_that_cannot_be_had_names_the_tightest(table, losses):
    with pytest.raises(BudgetError, match="tightest that can be had"):
        best_at_speedup(table, losses, 1.01 * fastest_speedup(table))


def test_a_sweep_goes_from_the_budgets_speed_to_the_fastest_with_rising_loss(table, losses):
    picks = sweep(table, losses, Budget(speedup=1.2), points=8)
    assert picks[0].speedup >= 1.2 - 1e-9
    assert all(a.speedup < b.speedup and a.loss < b.loss for a, b in zip(picks, picks[1:]))
    assert picks[-1].speedup == pytest.approx(fastest_speedup(table))
    assert sweep(table, losses, Budget(speedup=1.2), points=8) == picks


def test_a_sweep_without_budget_begins_dense(table, losses):
    assert not any(sweep(table, losses, Budget())[0].choices)


def test_no_baseline_beats_the_plan_of_the_same_speed(table, losses):
    baselines = [*uniform_picks(table, losses), *random_picks(table, losses), greedy_pick(table, losses, losses, 1.5)]
    assert {pick.label for pick in baselines} >= {*PATTERNS, "random 0"}
    for pick in baselines:
        if pick.speedup >= 1:
            assert best_at_speedup(table, losses, pick.speedup * (1 - 1e-9)).loss <= pick.loss + 1e-9


def test_random_plans_are_the_same_for_the_same_seed(table, losses):
    assert random_picks(table, losses, seed=3) == random_picks(table, losses, seed=3)
