"""The search ends with a plan inside the budget, and never touches the model or the test split."""

import dataclasses
import sys

import pytest
import torch
from torch import nn

from sparsewright.core import BudgetError, ModelError
from sparsewright.hardware import LayerTime, ModelTime
from sparsewright.models import Data
from sparsewright.search import Budget, fastest_within_drop, search, sweep

OPTIONS = {"patterns": ["2:4", "4x1@75%", "4x1@50%", "4x1@25%"], "points": 8}


@pytest.fixture(autouse=True)
def told_times(monkeypatch):
    """The dense model's time is told, so that no law here rests on a clock."""

    def told(model, batch, modules, shapes, **options):
        seconds = {name: 1e-6 * shape[0] * shape[1] for name, shape in shapes.items()}
        inside = {name: LayerTime(shapes[name], 64, 1, seconds[name]) for name in modules}
        return ModelTime(1.2 * sum(seconds.values()), inside)

    # By text: the package's name `search` is the function, not the module.
    monkeypatch.setattr(sys.modules["sparsewright.search.search"], "time_model", told)


@pytest.fixture
def evaluate(small, data):
    expected = small(torch.cat(data)).detach()

    def agreement(model):
        with torch.no_grad():
            return -float((model(torch.cat(data)) - expected).square().mean() / expected.square().mean())

    return agreement


def run(model, data, board, budget, **options):
    return search(model, data, target=board, budget=budget, **{**OPTIONS, **options})


def test_a_speed_budget_gives_the_plan_of_least_predicted_loss_so_fast(small, data, board):
    fastest = run(small, data, board(), Budget()).best.speedup
    goal = 1 + (fastest - 1) / 2
    found = run(small, data, board(), Budget(speedup=goal))
    assert found.best.speedup >= goal - 1e-9
    slower_or_worse = [p for p in found.baselines if p.speedup >= found.best.speedup]
    assert all(p.predicted_drop >= found.best.predicted_drop - 1e-12 for p in slower_or_worse)


def test_a_quality_budget_is_kept_by_true_evaluation(small, data, board, evaluate):
    rows = []
    found = run(small, data, board(), Budget(max_quality_drop=0.1), evaluate=evaluate, store=rows.append)
    assert found.dense_quality == pytest.approx(0.0)
    assert found.best.drop <= 0.1
    assert found.best.quality == pytest.approx(-found.best.drop)
    assert found.best.speedup > 1.0
    assert 1 <= len(rows) <= 6
    assert {"label", "plan", "quality", "drop", "predicted_s"} <= set(rows[0])


def test_a_larger_loss_buys_no_less_speed(small, data, board, evaluate):
    speeds = [
        run(small, data, board(), Budget(max_quality_drop=drop), evaluate=evaluate).best.drop for drop in (0.02, 0.5)
    ]
    assert speeds[0] < speeds[1]


def test_the_front_is_a_front(small, data, board):
    front = run(small, data, board(), Budget()).front
    assert len(front) >= 3
    assert all(a.speedup < b.speedup and a.predicted_drop < b.predicted_drop for a, b in zip(front, front[1:]))


def test_the_model_and_the_test_split_are_not_touched(small, data, board, evaluate):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    run(small, Data(calibration=data, test=data), board(), Budget(max_quality_drop=0.2), evaluate=evaluate)
    assert list(small.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_layers_that_cannot_win_stay_dense_with_the_reason(small, data, board):
    never = board(refuses=("2:4", "4x1@75%", "4x1@50%", "4x1@25%"))
    found = run(small, data, never, Budget())
    assert not found.best.plan.sparse_layers
    assert all("the board has no such kernel" in layer.reason for layer in found.best.plan.layers.values())


def test_a_quality_budget_needs_an_evaluation(small, data, board):
    with pytest.raises(BudgetError, match="needs evaluate"):
        run(small, data, board(), Budget(max_quality_drop=0.1))


def test_a_speed_out_of_reach_is_an_error_that_names_the_tightest(small, data, board):
    with pytest.raises(BudgetError, match="tightest"):
        run(small, data, board(), Budget(speedup=1000.0))


def test_a_model_without_layers_is_an_error(data, board):
    with pytest.raises(ModelError, match="nothing to search"):
        run(nn.Sequential(nn.ReLU()), data, board(), Budget())


def test_the_callers_own_evaluation_of_plans_is_used(small, data, board):
    asked = []

    def judge(plan):
        asked.append(plan)
        return 1.0 - 0.1 * len(plan.sparse_layers)

    found = run(small, data, board(), Budget(max_quality_drop=0.15), plan_evaluator=judge, evaluations=8)
    assert len(found.best.plan.sparse_layers) <= 1
    assert asked


def test_bisection_finds_the_fastest_plan_inside_whatever_the_unit(small, data, board):
    table_of = run(small, data, board(), Budget())
    losses = table_of.sensitivity.losses(table_of.table)
    picks = sweep(table_of.table, losses, Budget(), 12)
    allowed = 100 * picks[-3].loss

    def true_drop(pick):
        return 100 * pick.loss

    best, calibrated = fastest_within_drop(
        picks, table_of.table, table_of.sensitivity, true_drop, allowed, evaluations=12
    )
    assert true_drop(best) <= allowed
    assert best.speedup >= picks[-3].speedup - 1e-9
    assert calibrated.scale == pytest.approx(100 * table_of.sensitivity.scale)


def test_a_budget_that_no_plan_keeps_says_what_was_seen(small, data, board):
    found = run(small, data, board(), Budget(speedup=1.05))
    losses = found.sensitivity.losses(found.table)
    picks = sweep(found.table, losses, Budget(speedup=1.05), 4)
    with pytest.raises(BudgetError, match=r"within 0.01: the least that was seen is 5"):
        fastest_within_drop(picks, found.table, found.sensitivity, lambda pick: 5.0, 0.01)


def test_a_result_is_frozen(small, data, board):
    found = run(small, data, board(), Budget())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.best.speedup = 2.0
