"""`pack_` changes what wins and nothing else, and says why the rest stays."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sparsewright.core import (
    DataError,
    KernelError,
    LayerPlan,
    ModelError,
    Plan,
    PlanError,
    SparsewrightError,
    parse_pattern,
)
from sparsewright.hardware import AbstractTarget, Cost, CostStore, ThisTarget, pack_
from sparsewright.layouts import pack
from sparsewright.models import layers, sparsify_
from sparsewright.nn import SparseTensor, as_parameter, kept_places, train_packed_
from sparsewright.search import Budget, search
from sparsewright.solvers import solve_mask


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


@pytest.mark.parametrize("pattern", ["2:4", "50%", "3:6:4"])
def test_rows_that_choose_alone_become_int8_weights_under_exact_inputs(model, pattern):
    sparsify_(model, {"0": pattern}, method="magnitude")
    weight = model[0].weight.detach().clone()
    plan = Plan({"0": LayerPlan(parse_pattern(pattern), value_dtype="int8")})
    (row,) = pack_(model, Board({}), plan=plan)
    assert (row.packed, row.layout, row.value_dtype, row.ratio) == (True, "int8_weights", "int8", 0.5)
    rounded = model[0].weight.dense()
    assert (rounded - weight).abs().max() <= weight.abs().max() / 254 + 1e-6
    x = torch.randn(5, 32)
    expected = nn.functional.linear(x, rounded, model[0].bias)
    torch.testing.assert_close(model[0](x), expected, rtol=1e-5, atol=1e-6)


def test_a_plan_may_name_the_layout_of_int8_weights(model):
    sparsify_(model, {"0": "2:4x4"}, method="magnitude")
    plan = Plan({"0": LayerPlan(parse_pattern("2:4x4"), layout="int8_weights")})
    (row,) = pack_(copy.deepcopy(model), plan=plan, force=True)
    assert (row.layout, row.value_dtype) == ("int8_weights", "int8")
    # Another machine's profile tells of the layout `int8` only, so that its ratio would be a guess.
    (row,) = pack_(copy.deepcopy(model), Board({}), plan=plan)
    assert not row.packed
    assert "the plan asks for 'int8_weights'" in row.reason


def test_a_named_layout_is_judged_by_its_own_time(model, monkeypatch):
    sparsify_(model, {"0": "2:4x4"}, method="magnitude")
    asked = []
    ratio = lambda self, *choice: asked.append(choice) or 0.25  # noqa: E731
    monkeypatch.setattr(ThisTarget, "layout_ratio", ratio)
    monkeypatch.setattr(ThisTarget, "prepare", lambda self, *wanted: None)
    plan = Plan({"0": LayerPlan(parse_pattern("2:4x4"), layout="int8_weights")})
    (row,) = pack_(model, plan=plan, tokens=3)
    assert (row.packed, row.ratio) == (True, 0.25)
    assert asked == [((64, 32), parse_pattern("2:4x4"), 3, "int8", "int8_weights")]


def test_a_plan_for_layers_that_are_not_there_and_unknown_values_are_refused(model):
    masked(model)
    plan = Plan({"zz": LayerPlan(parse_pattern("dense"), value_dtype="int8")})
    with pytest.raises(PlanError, match="'zz', which this model does not have"):
        pack_(model, plan=plan, force=True)
    with pytest.raises(PlanError, match="no 'int4' values"):
        pack_(model, force=True, value_dtype="int4")


@pytest.mark.parametrize("pattern", ["2:4", "1:8x4", "3:6:4", "4x1@50%", "8x4@25%", "30%"])
def test_the_pattern_that_a_layer_was_sparsified_with_is_packed_without_a_plan(model, pattern):
    names = list(model.state_dict())
    sparsify_(model, {"0": pattern}, method="magnitude")
    assert set(model.state_dict()) - set(names) == {"0.weight_mask"}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        (row,) = pack_(copied, Board({}))
        assert (row.packed, row.pattern) == (True, pattern)
        assert not hasattr(copied[0], "weight_pattern")


def test_a_pattern_that_the_mask_left_is_read_off_the_mask_again(model):
    other = masked(copy.deepcopy(model), {"0": "2:4"})
    sparsify_(model, {"0": "1:4x4"}, method="magnitude")
    model[0].weight_mask.copy_(other[0].weight_mask)
    with torch.no_grad():
        model[0].weight.mul_(other[0].weight_mask)
    (row,) = pack_(model, force=True)
    assert row.pattern == "2:4"


def test_a_pattern_that_allows_more_than_the_mask_keeps_does_not_win(model):
    other = masked(copy.deepcopy(model), {"0": "1:4x4"})
    sparsify_(model, {"0": "2:4x4"}, method="magnitude")
    model[0].weight_mask.copy_(other[0].weight_mask)
    with torch.no_grad():
        model[0].weight.mul_(other[0].weight_mask)
    (row,) = pack_(model, force=True)
    assert row.pattern == "1:4x4"
    assert torch.equal(kept_places(model[0].weight.packed), other[0].weight_mask)


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("tokens", [0, -1, [], "a", 1.5, None, True, [64, 0]], ids=str)
def test_tokens_that_count_no_rows_are_refused(model, tokens, force):
    with pytest.raises(PlanError, match="one whole number of 1 or more or several of them, got"):
        pack_(masked(model), Board({}), tokens=tokens, force=force)


def test_a_state_dict_in_a_fresh_model_packs_by_what_its_masks_tell(model):
    fresh = nn.Sequential(nn.Linear(240, 48))
    saved = masked(copy.deepcopy(fresh), "3:6:4").state_dict()
    fresh[0].register_buffer("weight_mask", torch.ones(48, 240, dtype=torch.bool))
    fresh.load_state_dict(saved)
    (row,) = pack_(fresh, force=True)
    assert (row.pattern, row.layout) == ("3:6:4", "nmg")


def test_a_dense_model_has_nothing_to_pack(model):
    with pytest.raises(ModelError, match="Call sparsify_ first"):
        pack_(model, force=True)


def test_a_plan_that_the_mask_breaks_is_refused_and_nothing_changes(model):
    masked(model, "50%")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanError, match="its mask breaks it"):
        pack_(model, plan=Plan.uniform([ref.name for ref in layers(model)], "1:4"), force=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def convolutions():
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(32, 64, 1))
    model = nn.Sequential(*parts).eval()
    return masked(model, {"2": "4x1@25%", "3": "4x1@25%"})


def test_a_convolution_is_judged_by_the_target_at_its_matrix_shape():
    model = convolutions()
    first, second = pack_(model, Board({}, default=0.4), tokens=64)
    assert (first.name, first.shape, first.packed, first.ratio) == ("2", (32, 144), True, 0.4)
    assert model[2].weight.shape == (32, 16, 3, 3)
    assert second.packed
    slow = convolutions()
    rows = pack_(slow, Board({}, default=1.5), tokens=64)
    assert [row.packed for row in rows] == [False, False]
    assert "dense is faster" in rows[0].reason
    assert slow[2].weight_mask is not None


def test_a_batch_has_convolutions_timed_on_their_own_inputs(tmp_path):
    model = convolutions()
    x = torch.randn(1, 3, 20, 20)
    expected = model(x)
    target = ThisTarget(store=CostStore(tmp_path / "costs.sqlite"))
    rows = pack_(model, target, batch=x)
    assert all(row.ratio is not None and row.ratio > 0 for row in rows)
    assert all(row.packed == (row.ratio < 1) for row in rows)
    # Nothing was measured as a linear layer, and the model still answers the same.
    assert not target.profile.rows
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_a_convolution_that_the_batch_never_reaches_stays_masked(tmp_path):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3)

        def forward(self, x):
            return self.used(x)

    model = masked(Half(), "4x1@25%")
    rows = pack_(model, ThisTarget(store=CostStore(tmp_path / "costs.sqlite")), batch=torch.randn(1, 8, 9, 9))
    assert {row.name: row.reason for row in rows}["unused"].startswith("the batch never reaches it")


@pytest.mark.parametrize(
    "batch",
    ["garbage", 7, torch.randn(2, 5), {"image": torch.randn(1, 8, 9, 9)}],
    ids=["text", "one", "flat", "name"],
)
def test_a_batch_that_the_model_does_not_take_is_told_before_anything_is_packed(tmp_path, batch):
    model = masked(nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)), "4x1@25%")
    model.train()
    model[1].eval()  # frozen statistics, as fine-tuning has them
    with pytest.raises(DataError, match=r"one input that it takes .* but Sequential given .*raised"):
        pack_(model, ThisTarget(store=CostStore(tmp_path / "costs.sqlite")), batch=batch)
    assert model[0].weight_mask is not None
    assert (model[0].training, model[1].training) == (True, False)


def test_what_has_no_kernel_for_a_convolution_is_one_sentence_that_says_what_to_ask_for(tmp_path):
    model = masked(nn.Sequential(nn.Conv2d(8, 16, 3)), "4x1@25%")
    (row,) = pack_(model, force=True, value_dtype="int8")
    assert (row.packed, row.reason) == (
        False,
        "conv2d layers have no kernel for int8 values: ask for fp32 or fp16",
    )
    assert pack_(model, force=True, value_dtype="fp16")[0].packed
    with pytest.raises(ModelError, match=r"0\.weight: there is no gradient of a convolution's values; train it masked"):
        train_packed_(model)
    matrix = torch.randn(16, 72)
    held = pack(matrix, solve_mask(matrix.abs(), "4x1@25%"), "int8", "4x1@25%", torch.int8)
    model[0].weight = as_parameter(SparseTensor(held, view_shape=(16, 8, 3, 3)))
    with pytest.raises(KernelError, match=r"in the layout 'vector' with float32 or float16 values"):
        model(torch.randn(1, 8, 9, 9))
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    for call in (
        lambda: sparsify_(depthwise, {"0": "2:4"}),
        lambda: sparsify_(depthwise, "2:4"),
        lambda: search(depthwise, [torch.randn(1, 8, 9, 9)], budget=Budget(speedup=1.1), include=["0"]),
    ):
        with pytest.raises(SparsewrightError, match="convolution in 8 groups: each group is a small layer of its own"):
            call()
