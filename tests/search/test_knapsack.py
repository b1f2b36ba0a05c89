"""The knapsack is exact, deterministic, and says how far a budget misses."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from sparsewright.core import BudgetError
from sparsewright.search.knapsack import Window, choose, inside, total


def brute_force(objective, windows):
    best, best_value = None, float("inf")
    for picks in itertools.product(*(range(len(row)) for row in objective)):
        if all(inside(window, picks) for window in windows) and total(objective, picks) < best_value - 1e-15:
            best, best_value = list(picks), total(objective, picks)
    return best, best_value


@pytest.mark.parametrize("seed", range(15))
def test_it_finds_what_brute_force_finds(seed):
    generator = np.random.default_rng(seed)
    layers, choices = 6, 4
    scale = 10.0 ** generator.integers(-6, 3)
    objective = (generator.random((layers, choices)) * scale).tolist()
    windows = []
    for number in range(1 + seed % 3):
        costs = (generator.random((layers, choices)) * 10.0 ** generator.integers(-5, 8)).tolist()
        limit = sum(min(row) for row in costs) + generator.random() * 0.5 * sum(max(row) - min(row) for row in costs)
        windows.append(Window(f"cost {number}", costs, limit))
    expected, value = brute_force(objective, windows)
    if expected is None:
        with pytest.raises(BudgetError):
            choose(objective, windows)
        return
    found = choose(objective, windows)
    assert all(inside(window, found) for window in windows)
    assert total(objective, found) == pytest.approx(value, rel=1e-9)


def test_fifteen_choices_of_six_layers_are_solved_exactly():
    generator = np.random.default_rng(99)
    objective = generator.random((6, 15))
    costs = generator.random((6, 15))
    limit = 1.2
    # Dynamic programming over all reachable (cost, loss) pairs, dominated ones removed: exact for two criteria.
    states = [(0.0, 0.0)]
    for layer in range(6):
        reach = sorted((c + costs[layer, k], v + objective[layer, k]) for c, v in states for k in range(15))
        states, best = [], float("inf")
        for cost, value in reach:
            if cost <= limit and value < best:
                states.append((cost, value))
                best = value
    found = choose(objective.tolist(), [Window("cost", costs.tolist(), limit)])
    assert total(objective.tolist(), found) == pytest.approx(states[-1][1], rel=1e-9)


def test_without_windows_every_layer_takes_its_own_best():
    assert choose([[3.0, 1.0], [2.0, 2.0, 0.5]]) == [1, 2]


def test_ties_go_to_the_earlier_choice():
    objective = [[1.0, 1.0, 1.0]] * 4
    assert choose(objective, [Window("seconds", [[1.0, 1.0, 1.0]] * 4, 10.0)]) == [0, 0, 0, 0]


def test_the_same_input_gives_the_same_plan():
    generator = np.random.default_rng(5)
    objective, costs = generator.random((12, 8)).tolist(), generator.random((12, 8)).tolist()
    window = Window("seconds", costs, 3.0)
    assert choose(objective, [window]) == choose(objective, [window])


def test_an_impossible_budget_names_the_tightest_value():
    with pytest.raises(BudgetError, match=r"seconds at batch 1 within 1: .* is 3"):
        choose([[0.0, 1.0]] * 3, [Window("seconds at batch 1", [[2.0, 1.0]] * 3, 1.0)])


def test_two_budgets_that_only_clash_together_name_the_second():
    seconds = Window("seconds", [[1.0, 2.0]], 1.0)
    size = Window("bytes", [[5.0, 4.0]], 4.0)
    with pytest.raises(BudgetError, match=r"bytes within 4 together with seconds: .* is 5"):
        choose([[0.0, 0.0]], [seconds, size])


def test_a_limit_met_to_the_last_bit_is_kept():
    costs = [[0.1, 0.2], [0.2, 0.1], [0.3, 0.1]]
    assert choose([[0.0, 1.0]] * 3, [Window("seconds", costs, 0.1 + 0.2 + 0.3)]) == [0, 0, 0]


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(BudgetError, match="finite"):
        choose([[0.0, float("nan")]], [Window("seconds", [[1.0, 1.0]], 1.0)])


def test_what_native_code_prints_stays_off_standard_output():
    program = """
import ctypes
from sparsewright.search.knapsack import _native_output_to_stderr
print("before")
with _native_output_to_stderr():
    ctypes.CDLL(None).printf(b"from the solver\\n")
print("after")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "before\nafter\n"
    assert done.stderr.strip() == "from the solver"
