"""Sensitivity is the true relative output error, times how far the layer moves the model."""

import pytest
import torch

from sparsewright.core import NumericError, PlanError, parse_pattern
from sparsewright.models import layers
from sparsewright.search import Choice, Sensitivity, measure_sensitivity
from sparsewright.sparsifiers import sparsifiers

PATTERNS = ["2:4", "4x1@50%", "4x1@25%"]


def refs_of(model):
    return [ref for ref in layers(model) if not ref.skipped_reason]


def test_the_error_is_the_relative_squared_error_of_the_layers_output(small, data):
    found = measure_sensitivity(small, data, refs_of(small), ["2:4"], sparsifier="magnitude")
    inputs = torch.cat(data)
    weight = small.first.weight.detach()
    sparse = sparsifiers.get("magnitude").sparsify(weight, None, "2:4").weight
    expected = ((inputs @ (weight - sparse).T).square().sum() / (inputs @ weight.T).square().sum()).item()
    assert found.errors["first", "2:4"] == pytest.approx(expected, rel=1e-4)


def test_the_model_is_left_as_it_was_to_the_bit(small, data):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small.train()
    measure_sensitivity(small, data, refs_of(small), PATTERNS)
    assert small.training
    assert list(small.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_sparser_patterns_lose_more(small, data):
    found = measure_sensitivity(small, data, refs_of(small), PATTERNS)
    for name in ("first", "second", "last"):
        assert found.errors[name, "4x1@25%"] > found.errors[name, "4x1@50%"] > found.errors[name, "2:4"] > 0
        assert found.weights[name] > 0


def test_a_better_sparsifier_has_the_smaller_error(small, data):
    by = {
        name: measure_sensitivity(small, data, refs_of(small), ["4x1@50%"], sparsifier=name)
        for name in ("magnitude", "sparsegpt")
    }
    assert by["sparsegpt"].errors["second", "4x1@50%"] < by["magnitude"].errors["second", "4x1@50%"]


def test_the_same_data_give_the_same_figures(small, data):
    once = measure_sensitivity(small, data, refs_of(small), PATTERNS)
    assert measure_sensitivity(small, data, refs_of(small), PATTERNS) == once


def test_what_is_in_the_cache_is_not_measured_again(small, data, monkeypatch):
    kept = {}
    once = measure_sensitivity(small, data, refs_of(small), PATTERNS, cache=kept)
    from sparsewright.search import sensitivity

    monkeypatch.setattr(sensitivity, "calibrate", lambda *arguments: pytest.fail("calibrated again"))
    assert measure_sensitivity(small, data, refs_of(small), PATTERNS, cache=kept) == once


def test_a_stopped_measurement_goes_on_where_it_was(small, data):
    whole, kept = {}, {}
    once = measure_sensitivity(small, data, refs_of(small), PATTERNS, cache=whole)
    kept.update({name: value for name, value in whole.items() if "first" in name})
    assert measure_sensitivity(small, data, refs_of(small), PATTERNS, cache=kept) == once


def test_after_the_time_is_up_the_cheaper_sparsifier_is_used_and_told(small, data):
    found = measure_sensitivity(small, data, refs_of(small), PATTERNS, minutes=0.0)
    assert ("first", "2:4") in found.cheaper


def test_fp16_costs_next_to_nothing_and_int8_little(small, data):
    found = measure_sensitivity(small, data, refs_of(small), ["2:4"], int8=True)
    plain = found.loss("first", Choice(parse_pattern("2:4")))
    assert plain < found.loss("first", Choice(parse_pattern("2:4"), "fp16")) < 1.001 * plain
    assert 0 < found.loss("first", Choice(parse_pattern("dense"), "int8")) < 0.1 * plain
    assert found.loss("first", Choice(parse_pattern("dense"))) == 0


def test_true_evaluations_bring_losses_into_the_users_unit():
    raw = Sensitivity({("a", "2:4"): 0.5}, {"a": 2.0})
    choice = Choice(parse_pattern("2:4"))
    assert raw.loss("a", choice) == pytest.approx(1.0)
    assert raw.calibrated([(1.0, 0.03)]).loss("a", choice) == pytest.approx(0.03)
    assert raw.calibrated([]) == raw
    assert raw.calibrated([(1.0, -0.5)]).loss("a", choice) > 0


def test_a_pattern_that_was_not_measured_is_an_error():
    with pytest.raises(PlanError, match="1:4 was not measured"):
        Sensitivity({}, {}).loss("a", Choice(parse_pattern("1:4")))


def test_inputs_that_are_not_finite_are_an_error(small, data):
    data[1][3, 5] = float("nan")
    with pytest.raises(NumericError):
        measure_sensitivity(small, data, refs_of(small), ["2:4"])
