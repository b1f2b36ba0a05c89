"""One packed copy, timed end to end, tells how much is really saved."""

import copy

import pytest
import torch
from torch import nn

from sparsewright.core import parse_pattern
from sparsewright.hardware import AbstractTarget, Cost, LayerTime, ModelTime, calibrated
from sparsewright.hardware import calibrated_time as module


class Half(AbstractTarget):
    """Every sparse layer takes half the dense time."""

    about = "half"

    def layer_cost(self, shape, pattern, tokens, value_dtype="fp32"):
        return Cost(0.5, 1.0)

    def can_run(self, pattern, shape):
        return pattern.why_not(shape)

    def describe(self):
        return {"cpu": "half"}


TIMES = {"one": ModelTime(10.0, {"0": LayerTime((32, 32), 8, 1, 4.0), "2": LayerTime((32, 32), 8, 1, 2.0)})}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).train()


def told(monkeypatch, ratio):
    """The end-to-end measurement is told, so that no law here rests on a clock."""

    class Ratio:
        value = ratio

    monkeypatch.setattr(module, "interleave", lambda calls, **options: {"dense": None, "packed": None})
    monkeypatch.setattr(module, "speedup", lambda *samples: Ratio)


def test_the_copy_is_then_predicted_half_way_to_what_was_measured(model, monkeypatch):
    told(monkeypatch, 1.5)
    found = calibrated(TIMES, model, {"one": (torch.randn(8, 32),)}, Half())["one"]
    seconds = {name: found.layer_seconds(Half(), name, parse_pattern("4x1@50%")) for name in found.layers}
    assert found.total_s == 10.0
    saved = 1 - found.predict(seconds) / found.total_s
    expected, measured = 0.3, 1 - 1 / 1.5
    assert saved == pytest.approx((expected * measured) ** 0.5)


def test_a_disturbed_measurement_moves_it_only_so_far(model, monkeypatch):
    told(monkeypatch, 5.0)
    found = calibrated(TIMES, model, {"one": (torch.randn(8, 32),)}, Half())["one"]
    assert found.layers["0"].seconds == pytest.approx(1.3 * 4.0)
    told(monkeypatch, 0.9)
    assert calibrated(TIMES, model, {"one": (torch.randn(8, 32),)}, Half()) == TIMES


def test_something_is_always_left_outside_the_layers(model, monkeypatch):
    told(monkeypatch, 5.0)
    tight = {"one": ModelTime(6.5, TIMES["one"].layers)}
    assert calibrated(tight, model, {"one": (torch.randn(8, 32),)}, Half())["one"].rest_s > 0


def test_the_model_itself_stays_dense_and_in_its_mode(model):
    before = copy.deepcopy(model.state_dict())
    calibrated(TIMES, model, {"one": (torch.randn(8, 32),)}, Half(), rounds=(2, 2), seconds=0)
    assert model.training
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_where_no_layer_takes_the_pattern_nothing_changes(model):
    class Never(Half):
        def can_run(self, pattern, shape):
            return ["never"]

    assert calibrated(TIMES, model, {"one": (torch.randn(8, 32),)}, Never()) == TIMES
