"""`pack_` changes what wins and nothing else, and says why the rest stays."""

import copy

import pytest
import torch
from torch import nn

from sparsewright.core import LayerPlan, ModelError, Plan, PlanError, parse_pattern
from sparsewright.hardware import AbstractTarget, Cost, pack_
from sparsewright.models import layers, sparsify_
from sparsewright.nn import SparseTensor


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


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)).eval()


def masked(model, pattern="2:4"):
    sparsify_(model, pattern, method="magnitude")
    return model


def test_a_packed_model_answers_as_the_masked_one(model):
    x = torch.randn(5, 32)
    expected = masked(model)(x)
    rows = pack_(model, force=True)
    assert all(row.packed for row in rows)
    assert all(isinstance(module.weight, SparseTensor) for module in model if isinstance(module, nn.Linear))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_masks_are_stripped_from_packed_layers(model):
    pack_(masked(model), force=True)
    assert not any("weight_mask" in name for name, _ in model.named_buffers())


def test_a_layer_that_does_not_win_stays_masked_with_the_measured_reason(model):
    plan = Plan({"0": LayerPlan(parse_pattern("2:4")), "2": LayerPlan(parse_pattern("50%"))})
    sparsify_(model, plan, method="magnitude")
    rows = {row.name: row for row in pack_(model, Board({"2:4": 0.5, "50%": 1.25}), tokens=8, plan=plan)}
    assert rows["0"].packed
    assert not rows["2"].packed
    assert rows["2"].reason == "dense is faster here: 0.80x at [8] tokens"
    assert rows["2"].ratio == 1.25
    assert "weight_mask" in dict(model[2].named_buffers())


def test_several_token_counts_are_averaged(model):
    class Slow(Board):
        def layer_cost(self, shape, pattern, tokens, value_dtype="fp32"):
            return Cost(0.4 if tokens == 1 else 1.4, 1.0)

    assert not any(row.packed for row in pack_(copy.deepcopy(masked(model)), Slow({}), tokens=[1, 64, 64]))
    assert all(row.packed for row in pack_(model, Slow({}), tokens=[1]))


def test_values_can_be_stored_as_fp16(model):
    x = torch.randn(5, 32)
    expected = masked(model)(x)
    rows = pack_(model, force=True, value_dtype="fp16")
    assert {row.value_dtype for row in rows} == {"fp16"}
    assert model[0].weight.packed.value_dtype == torch.float16
    torch.testing.assert_close(model(x), expected, rtol=5e-3, atol=5e-3)


def test_layers_can_become_int8_sparse_and_dense_ones_alike(model):
    x = torch.randn(5, 32)
    sparsify_(model, {"0": "2:4x4"}, method="magnitude")
    expected = model(x)
    plan = Plan(
        {
            "0": LayerPlan(parse_pattern("2:4x4"), value_dtype="int8"),
            "2": LayerPlan(parse_pattern("dense"), value_dtype="int8"),
        }
    )
    rows = {row.name: row for row in pack_(model, plan=plan, force=True)}
    assert {row.layout for row in rows.values()} == {"int8"}
    assert {row.value_dtype for row in rows.values()} == {"int8"}
    assert isinstance(model[2], nn.Linear)
    assert (model(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_pattern_without_an_int8_kernel_stays_masked_and_says_why(model):
    sparsify_(model, {"0": "2:4"}, method="magnitude")
    (row,) = pack_(model, force=True, value_dtype="int8")
    assert not row.packed
    assert "int8" in row.reason


def test_a_plan_for_layers_that_are_not_there_and_unknown_values_are_refused(model):
    masked(model)
    plan = Plan({"zz": LayerPlan(parse_pattern("dense"), value_dtype="int8")})
    with pytest.raises(PlanError, match="'zz', which this model does not have"):
        pack_(model, plan=plan, force=True)
    with pytest.raises(PlanError, match="no 'int4' values"):
        pack_(model, force=True, value_dtype="int4")


def test_a_dense_model_has_nothing_to_pack(model):
    with pytest.raises(ModelError, match="Call sparsify_ first"):
        pack_(model, force=True)


def test_a_plan_that_the_mask_breaks_is_refused_and_nothing_changes(model):
    masked(model, "50%")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanError, match="its mask breaks it"):
        pack_(model, plan=Plan.uniform([ref.name for ref in layers(model)], "1:4"), force=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
