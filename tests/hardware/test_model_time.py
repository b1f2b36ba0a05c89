"""End to end = the measured rest + every layer's in-model time times its measured ratio."""

import pytest
import torch
from torch import nn

from sparsewright.core import NM, DataError, Dense, ModelError, ProfileError
from sparsewright.hardware import AbstractTarget, Cost, LayerTime, ModelTime, model_time, time_model
from sparsewright.hardware.model_time import LARGEST_SHARE, fitted


class Board(AbstractTarget):
    """A target that is told what wins."""

    about = "a board"

    def __init__(self, ratios, default=0.5):
        self.ratios, self.default = ratios, default

    def layer_cost(self, shape, pattern, tokens, value_dtype="fp32"):
        return Cost(self.ratios.get(str(pattern), self.default), 1.0)

    def can_run(self, pattern, shape):
        return pattern.why_not(shape)

    def describe(self):
        return {}


TIME = ModelTime(10.0, {"a": LayerTime((8, 8), 64, 1, 4.0), "b": LayerTime((8, 16), 128, 2, 3.0)})


def test_the_rest_is_what_no_layer_takes():
    assert TIME.rest_s == pytest.approx(3.0)
    assert TIME.sparse_share == pytest.approx(0.7)


def test_a_plan_takes_the_rest_and_its_layers():
    assert TIME.predict({"a": 1.0}) == pytest.approx(7.0)
    assert TIME.predict({}) == 10.0
    assert model_time(10.0, {"a": 4.0, "b": 3.0}, {"a": 1.0}) == pytest.approx(7.0)


def test_layers_never_fill_more_than_the_model():
    shrunk = ModelTime(5.0, fitted(TIME.layers, 5.0))
    assert sum(layer.seconds for layer in shrunk.layers.values()) == pytest.approx(LARGEST_SHARE * 5.0)
    assert shrunk.layers["a"].seconds / shrunk.layers["b"].seconds == pytest.approx(4.0 / 3.0)
    assert fitted(TIME.layers, 10.0) == TIME.layers


@pytest.mark.parametrize("total", [0.1, 1 / 3, 10.0, 1e-4 / 7])
def test_a_plan_that_changes_nothing_takes_the_measured_total_to_the_last_bit(total):
    layers = {str(at): LayerTime((8, 8), 1, 1, total / (at + 3)) for at in range(7)}
    assert ModelTime(total, layers).predict({}) == total
    assert ModelTime(total, layers).predict({"2": layers["2"].seconds}) == total


def test_a_layer_that_was_not_timed_is_named():
    with pytest.raises(ProfileError, match="'c'"):
        TIME.predict({"c": 1.0})


def test_layer_seconds_are_in_model_seconds_times_the_targets_ratio():
    board = Board({"2:4": 0.25})
    assert TIME.layer_seconds(board, "a", NM(2, 4)) == pytest.approx(1.0)
    assert TIME.layer_seconds(board, "a", Dense()) == pytest.approx(4.0)


def test_another_machine_scales_the_rest_as_its_layers():
    there = TIME.on(Board({}, default=7.0))
    assert there.layers["b"].seconds == pytest.approx(14.0)
    assert there.rest_s / TIME.rest_s == pytest.approx(21.0 / 7.0)


def test_a_timed_model_knows_tokens_and_calls_of_each_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.twice(self.twice(self.once(x)))

    model = Twice().train()
    modules = {"once": model.once, "twice": model.twice}
    shapes = dict.fromkeys(modules, (16, 16))
    timed = time_model(model, torch.randn(3, 5, 16), modules, shapes, rounds=(2, 2), seconds=0)
    assert (timed.layers["once"].tokens, timed.layers["once"].calls) == (15, 1)
    assert (timed.layers["twice"].tokens, timed.layers["twice"].calls) == (30, 2)
    assert timed.layers["twice"].tokens_per_call == 15
    assert 0 <= timed.rest_s <= timed.total_s
    assert model.training
    assert not model.once._forward_hooks


def test_a_layer_that_is_called_by_keyword_counts_its_tokens():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.a = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 16)

        def forward(self, x):
            return self.a(input=self.image(input=x).flatten(2).mT)

    model = ByName()
    timed = time_model(
        model,
        torch.randn(2, 3, 8, 8),
        {"image": model.image, "a": model.a},
        {"image": (16, 48), "a": (16, 16)},
        rounds=(2, 2),
        seconds=0,
    )
    assert {name: layer.tokens for name, layer in timed.layers.items()} == {"image": 8, "a": 8}


def test_a_layer_that_is_never_called_has_no_cost():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    with pytest.raises(ModelError, match="'idle' is never called"):
        time_model(model, torch.randn(2, 4), dict(model), {"used": (4, 4), "idle": (4, 4)}, rounds=(1, 1), seconds=0)


def test_what_cannot_be_timed_is_told_in_one_sentence():
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(3, 8)
    with pytest.raises(ModelError, match=r"A model is a torch\.nn\.Module, got NoneType"):
        time_model(None, x, {}, {})
    with pytest.raises(DataError, match="Sequential given None raised TypeError"):
        time_model(model, None, {"0": model[0]}, {"0": (8, 8)})


def test_timing_leaves_every_submodule_in_its_mode_and_able_to_train():
    model = nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8)).train()
    model[1].eval()
    x = torch.randn(3, 8)
    time_model(model, x, {"0": model[0]}, {"0": (8, 8)}, rounds=(3, 3), seconds=0)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    # Its weights came to be inside the timing, and still are no inference tensors.
    model(x).sum().backward()
    assert model[0].weight.grad is not None
