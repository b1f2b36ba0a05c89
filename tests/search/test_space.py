"""The cost table knows every choice of every layer, and why the others are out."""

import pytest

from sparsewright.core import VALUE_BITS, Dense, ModelError, PlanError, parse_pattern
from sparsewright.hardware import LayerTime, ModelTime
from sparsewright.search import Choice, cost_table
from sparsewright.search.space import make_choices

PATTERNS = ["2:4", "4x1@50%", "4x1@25%"]


def test_seconds_are_in_model_seconds_times_the_ratio(board, times):
    table = cost_table(board(), times, PATTERNS, rest_bytes=1000)
    pick = [table.choices[0].index(Choice(parse_pattern("4x1@50%"))), 0, 0]
    assert table.total_s(pick, "batch 1") == pytest.approx(10.0 - 2.0)
    assert table.speedup(pick, "batch 1") == pytest.approx(10 / 8)
    assert table.total_s(table.dense_pick(), "batch 32") == pytest.approx(260.0)


def test_bytes_are_the_patterns_theoretical_bytes(board, times):
    table = cost_table(board(), times, PATTERNS, ["fp32", "fp16"], rest_bytes=1000, dense_value_dtype="fp16")
    for choice, size in zip(table.choices[0], table.size_bytes[0]):
        assert size == choice.pattern.theoretical_bytes((64, 64), VALUE_BITS[choice.value_dtype])
    assert table.total_bytes(table.dense_pick()) == 1000 + 3 * 64 * 64 * 2


def test_dense_is_always_the_first_choice(board, times):
    assert all(row[0].is_dense for row in cost_table(board(), times, PATTERNS).choices)


def test_a_choice_that_cannot_run_is_out_with_the_targets_reason(board, times):
    table = cost_table(board(refuses=("2:4",)), times, PATTERNS)
    assert "2:4: the board has no such kernel" in table.reasons["a"]
    assert Choice(parse_pattern("2:4")) not in table.choices[0]


def test_a_choice_that_is_slower_and_no_smaller_is_out_with_the_measured_gain(board, times):
    slow = board(ratios={"4x1@99.5%": 1.25})
    table = cost_table(slow, times, ["4x1@99.5%"], dense_value_dtype="fp16")
    assert table.choices == ((Choice(Dense(), "fp16"),),) * 3
    assert table.reasons["a"][0] == "4x1@99.5%: no faster than dense here (0.80x) and no smaller"
    assert table.plan(table.dense_pick()).layers["a"].reason == table.reasons["a"][0]


def test_a_dense_int8_layer_is_a_choice_when_asked_for(board, times):
    table = cost_table(board(), times, PATTERNS, ["fp32", "int8"])
    assert Choice(Dense(), "int8") in table.choices[0]
    assert Choice(parse_pattern("2:4"), "int8") in table.choices[0]


def test_a_value_type_that_a_layers_kernels_do_not_take_is_out_with_the_reason(board, times):
    table = cost_table(board(), times, PATTERNS, ["fp32", "int8"], kernel_value_dtypes={"a": ("fp32", "fp16")})
    assert {choice.value_dtype for choice in table.choices[0]} == {"fp32"}
    assert {choice.value_dtype for choice in table.choices[1]} == {"fp32", "int8"}
    assert "dense int8: its kernels take fp32 and fp16 values only" in table.reasons["a"]
    assert "2:4 int8: its kernels take fp32 and fp16 values only" in table.reasons["a"]


def test_a_pick_survives_the_way_through_a_plan(board, times):
    table = cost_table(board(), times, PATTERNS, ["fp32", "fp16"])
    pick = [3, 0, 1]
    plan = table.plan(pick, "sparsegpt")
    assert table.pick_of(plan) == pick
    assert plan.layers["a"].sparsifier == "sparsegpt"
    assert plan.layers["b"].sparsifier is None
    assert plan.layers["b"].reason


def test_no_layers_and_unlike_layers_are_errors(board):
    with pytest.raises(ModelError, match="nothing to search"):
        cost_table(board(), {"batch 1": ModelTime(1.0, {})}, PATTERNS)
    one = ModelTime(2.0, {"a": LayerTime((8, 8), 1, 1, 1.0)})
    two = ModelTime(2.0, {"b": LayerTime((8, 8), 1, 1, 1.0)})
    with pytest.raises(ModelError, match="different layers"):
        cost_table(board(), {"batch 1": one, "batch 32": two}, PATTERNS)


@pytest.mark.parametrize("kinds", ["int8", (), None, ("int4",), (["int8"],)])
def test_value_types_that_are_no_list_of_known_ones_are_refused(kinds):
    with pytest.raises(PlanError):
        make_choices(["2:4x4"], kinds)


def test_int8_goes_with_every_pattern_and_with_dense_layers():
    made = [choice.text for choice in make_choices(["2:4", "2:4x4", "4x1@50%"], ("fp32", "int8"))]
    assert made == ["2:4", "2:4 int8", "2:4x4", "2:4x4 int8", "4x1@50%", "4x1@50% int8", "dense int8"]
