"""`sparsify_`: zeros and masks where the plan says so, everything else untouched, all or nothing."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from sparsewright import nn as sparse_nn
from sparsewright.bundle import load, save
from sparsewright.core import (
    AbstractPattern,
    DataError,
    LayerPlan,
    LayerStats,
    ModelError,
    NumericError,
    PatternError,
    Plan,
    PlanError,
    Unstructured,
    parse_pattern,
)
from sparsewright.hardware import pack_
from sparsewright.models import layers, sparsify_, strip_masks_
from sparsewright.solvers import solve_mask
from sparsewright.sparsifiers import AbstractSparsifier, Needs, Sparsified


def same_state(model: nn.Module, state: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(state) and all(torch.equal(now[key], state[key]) for key in state)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def test_a_uniform_pattern_zeroes_every_layer_and_keeps_the_rest() -> None:
    model = tiny_models.tiny_bert()
    before = state_of(model)
    result = sparsify_(model, "2:4")
    assert len(result.layers) == 18
    for name, mask in sparse_nn.masks(model).items():
        weight = model.get_submodule(name).weight.detach()
        assert parse_pattern("2:4").check_mask(mask) == []
        assert torch.equal(weight, torch.where(mask, before[f"{name}.weight"], 0))
    untouched = [key for key in before if not any(key == f"{name}.weight" for name in result.layers)]
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in untouched)


def test_the_mask_is_a_persistent_buffer_beside_the_weight() -> None:
    model = tiny_models.Mlp()
    sparsify_(model, "2:4")
    assert model.state_dict()["0.weight_mask"].dtype == torch.bool
    assert strip_masks_(model) == 2
    assert list(model.state_dict()) == list(tiny_models.Mlp().state_dict())


def test_an_exact_zero_among_kept_weights_stays_kept() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    with torch.no_grad():
        model[0].weight.zero_()
    sparsify_(model, "2:4")
    assert int(sparse_nn.masks(model)["0"].sum()) == 64


def test_transposed_weights_are_sparse_along_their_inputs() -> None:
    model = tiny_models.tiny_gpt2()
    sparsify_(model, "2:4", method="wanda", data=[tiny_models.token_batch()])
    for ref in layers(model):
        if not ref.skipped_reason:
            assert parse_pattern("2:4").check_mask(ref.get_mask()) == []
            assert torch.equal(ref.get_mask().T, ref.module.weight_mask)


def test_rules_reach_layers_by_name_and_by_expression_and_leave_the_rest() -> None:
    model = tiny_models.tiny_bert()
    rules = {"re:.*intermediate.*": "4x1@50%", "encoder.layer.0.output.dense": "1:4"}
    result = sparsify_(model, rules)
    assert {layer.pattern for layer in result.layers.values()} == {"4x1@50%", "1:4"}
    assert len(result.layers) == 4
    assert result.skipped["encoder.layer.1.output.dense"] == "no rule names it"


def test_an_exact_name_reaches_a_head_that_is_skipped_by_default() -> None:
    model = tiny_models.tiny_llama()
    assert list(sparsify_(model, {"lm_head": "2:4"}).layers) == ["lm_head"]


def test_a_dense_layer_of_the_plan_stays_as_it_is_with_its_reason() -> None:
    model = tiny_models.Mlp()
    before = state_of(model)
    plan = Plan(
        {"0": LayerPlan(parse_pattern("dense"), reason="does not win here"), "2": LayerPlan(parse_pattern("2:4"))}
    )
    result = sparsify_(model, plan)
    assert list(result.layers) == ["2"]
    assert result.skipped == {"0": "does not win here"}
    assert torch.equal(model[0].weight, before["0.weight"])


def test_the_method_of_a_layer_plan_wins_over_that_of_the_call() -> None:
    plan = Plan({"0": LayerPlan(parse_pattern("2:4"), sparsifier="wanda"), "2": LayerPlan(parse_pattern("2:4"))})
    result = sparsify_(tiny_models.Mlp(), plan, data=[torch.randn(4, 32)])
    assert [layer.sparsifier for layer in result.layers.values()] == ["wanda", "magnitude"]
    assert result.plan.layers["2"].sparsifier == "magnitude"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_convolutions_are_sparse_in_their_declared_view(method: str) -> None:
    model = tiny_models.ConvNet()
    result = sparsify_(model, "2:4", method=method, data=[torch.randn(4, 3, 8, 8)])
    mask = model.blocks[0].conv.weight_mask
    assert mask.shape == (16, 16, 3, 3)
    assert parse_pattern("2:4").check_mask(mask.flatten(1)) == []
    assert result.skipped["stem"].startswith("it reads the raw input")


def test_filter_include_and_exclude_choose_layers() -> None:
    model = tiny_models.Mlp()
    assert sparsify_(model, "2:4", filter_fn=lambda module, name: name == "2").skipped == {"0": "filtered out"}
    assert list(sparsify_(tiny_models.Mlp(), "2:4", exclude=["2"]).layers) == ["0"]
    assert list(sparsify_(tiny_models.Mlp(), "2:4", include=["re:2"]).layers) == ["2"]


def test_a_pattern_that_does_not_fit_leaves_the_model_unchanged_and_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(32, 30), nn.Linear(30, 32))
    before = state_of(model)
    with pytest.raises(PatternError, match=r"1 of shape \(32, 30\).*multiple of 4"):
        sparsify_(model, "2:4")
    assert same_state(model, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_weight_in_the_last_block_leaves_the_model_unchanged_and_is_named(bad: float) -> None:
    model = tiny_models.tiny_bert()
    with torch.no_grad():
        model.encoder.layer[2].output.dense.weight[3, 5] = bad
    before = state_of(model)
    with pytest.raises(NumericError, match=r"encoder\.layer\.2\.output\.dense.*\[3, 5\]"):
        sparsify_(model, "2:4", method="wanda", data=[tiny_models.token_batch()])
    now = model.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[key], before[key]) or "layer.2.output" in key for key in before)
    assert float((now["encoder.layer.2.output.dense.weight"] == 0).sum()) < 10


class Interrupted(AbstractSparsifier):
    """Ends the third layer as Ctrl-C would."""

    calls: ClassVar[list[str]] = []

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        self.calls.append(layer)
        if len(self.calls) == 3:
            raise KeyboardInterrupt
        mask = solve_mask(weight.abs(), pattern)
        return Sparsified(mask, torch.where(mask, weight, 0))


def test_an_interrupt_puts_earlier_masks_and_weights_back() -> None:
    model = tiny_models.tiny_bert()
    sparsify_(model, "2:4", include=["encoder.layer.0.output.dense"])
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        sparsify_(model, "1:4", method=Interrupted())
    assert same_state(model, before)


def test_a_method_that_needs_data_says_so() -> None:
    model = tiny_models.Mlp()
    with pytest.raises(DataError, match="Pass data"):
        sparsify_(model, "2:4", method="sparsegpt")
    assert sparse_nn.masks(model) == {}


def test_a_model_without_a_layer_to_sparsify_is_an_error_with_the_reasons() -> None:
    with pytest.raises(ModelError, match="1x embedding"):
        sparsify_(nn.Sequential(nn.Embedding(10, 16)), "2:4")
    with pytest.raises(ModelError, match="no linear layer"):
        sparsify_(nn.Identity(), "2:4")


@pytest.mark.parametrize(
    ("plan", "options", "error", "message"),
    [
        ("2:4", {"method": None}, ModelError, "method is a sparsifier's name.*magnitude"),
        ("2:4", {"method": 3}, ModelError, "got 3"),
        ("2:4", {"value_dtype": ["int8"]}, PlanError, "There are no"),
        ({3: "2:4"}, {}, PlanError, "A rule is a layer's name"),
    ],
)
def test_arguments_of_another_kind_are_told(
    plan: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = tiny_models.Mlp()
    with pytest.raises(error, match=message):
        sparsify_(model, plan, **options)
    assert sparse_nn.masks(model) == {}


def test_a_batch_that_the_model_fails_on_is_told_by_its_number() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    good = torch.randn(8, 64)
    before = state_of(model)
    for bad in (torch.randn(8, 63), good.half()):
        with pytest.raises(DataError, match=r"Batch 1 does not fit the model \(RuntimeError"):
            sparsify_(model, "2:4", method="wanda", data=[good, bad])
        assert same_state(model, before)
    with pytest.raises(DataError, match=r"Batch 0 does not fit the model \(IndexError"):
        sparsify_(tiny_models.tiny_bert(), "2:4", method="wanda", data=[torch.full((2, 4), 10**6)])


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "auto"])
def test_a_layer_that_only_zeros_reach_is_told(method: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16))
    with pytest.warns(UserWarning, match="Every calibration input of 0 is zero"):
        sparsify_(model, "2:4", method=method, data=[torch.zeros(4, 16)])


def test_plans_and_rules_for_other_models_are_refused() -> None:
    with pytest.raises(PlanError, match="Did you mean"):
        sparsify_(tiny_models.tiny_bert(), Plan.uniform(["encoder.layer.0.output.dens"], "2:4"))
    with pytest.raises(PlanError, match="shared with"):
        sparsify_(tiny_models.tiny_gpt2(), {"lm_head": "2:4"})
    with pytest.raises(PlanError, match="A plan is"):
        sparsify_(tiny_models.Mlp(), 24)  # type: ignore[arg-type]


class TiedMlp(nn.Module):
    """The first and the last layer share one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_layers_that_share_a_weight_become_sparse_once_and_share_the_mask(method: str, tmp_path: Path) -> None:
    model = TiedMlp()
    result = sparsify_(model, "2:4x4", method=method, data=[torch.randn(64, 32)])
    assert list(result.layers) == ["first", "middle"]
    assert result.skipped["last"] == "its weight is that of first, and becomes sparse with it"
    assert model.last.weight is model.first.weight
    found = sparse_nn.masks(model)
    assert torch.equal(found["first"], found["last"])
    assert not model.last.weight[~found["last"]].any()
    x = torch.randn(5, 32)
    expected = model(x)
    save(model, tmp_path / "tied.safetensors")
    loaded = load(tmp_path / "tied.safetensors", TiedMlp())
    pack_(model, force=True)
    for packed in (model, loaded):
        assert packed.last.weight is packed.first.weight
        assert isinstance(packed.last.weight, sparse_nn.SparseTensor)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)


def test_calibration_sees_the_inputs_of_all_layers_that_share_a_weight() -> None:
    model, x = TiedMlp(), torch.randn(64, 32)
    rows: list[Tensor] = []
    for module in (model.first, model.last):
        module.register_forward_pre_hook(lambda module, args: rows.append(args[0]))
    model(x)
    noted = Same()
    sparsify_(model, {"first": "50%"}, method=noted, data=[x])
    assert noted.seen["first"].tokens == 128
    expected = torch.cat(rows[:2]).double().square().sum(0)
    torch.testing.assert_close(noted.seen["first"].square_sum, expected, rtol=1e-5, atol=1e-5)


def test_a_failing_method_puts_a_shared_weight_and_its_masks_back() -> None:
    model = TiedMlp()
    sparsify_(model, {"first": "2:4"})
    before = state_of(model)
    model.middle.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericError):
        sparsify_(model, "1:4")
    model.middle.weight.data[0, 0] = before["middle.weight"][0, 0]
    assert same_state(model, before)


def test_a_layer_that_follows_another_one_is_not_planned_by_name() -> None:
    with pytest.raises(
        PlanError, match=r"^last cannot be sparse: its weight is that of first, and becomes sparse with"
    ):
        sparsify_(TiedMlp(), {"last": "2:4"})


def test_progress_counts_every_layer() -> None:
    seen: list[tuple[int, int, str]] = []
    sparsify_(tiny_models.Mlp(), "2:4", progress=lambda *step: seen.append(step))
    assert seen == [(1, 2, "0"), (2, 2, "2")]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_global_scope_spends_one_density_over_all_layers(method: str) -> None:
    model = tiny_models.Mlp()
    with torch.no_grad():
        model[0].weight.mul_(10)
    result = sparsify_(model, "50%", method=method, data=[torch.randn(64, 32)], scope="global")
    kept = {name: int(mask.sum()) for name, mask in sparse_nn.masks(model).items()}
    assert sum(kept.values()) == round(0.5 * 2 * 32 * 64)
    assert kept["0"] > 2 * kept["2"]
    assert isinstance(result.plan.layers["0"].pattern, Unstructured)


def test_global_scope_takes_one_unstructured_density_only() -> None:
    with pytest.raises(PatternError, match="scope='global'"):
        sparsify_(tiny_models.Mlp(), "2:4", scope="global")


class Same(AbstractSparsifier):
    """Keeps the first half of the rows' columns and notes the inputs' moments."""

    needs: ClassVar[Needs] = "norm"

    def __init__(self) -> None:
        self.seen: dict[str, LayerStats] = {}

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        assert stats is not None
        self.seen[layer] = stats
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask[:, : weight.shape[1] // 2] = True
        return Sparsified(mask, torch.where(mask, weight, 0))


@pytest.mark.parametrize("build", ["tiny_bert", "tiny_llama", "tiny_gpt2", "tiny_t5", "tiny_deit"])
def test_later_blocks_are_calibrated_on_what_sparse_blocks_before_them_give(build: str) -> None:
    model = getattr(tiny_models, build)()
    batch: Any = tiny_models.token_batch(padded=0)
    if build == "tiny_t5":
        batch["decoder_input_ids"] = batch["input_ids"][:, :5]
    if build == "tiny_deit":
        torch.manual_seed(0)
        batch = torch.randn(2, 3, 32, 32)
    noted = Same()
    result = sparsify_(model, "50%", method=noted, data=[batch])
    first = next(iter(result.layers))
    block = first.split(".")
    # The last layer to be calibrated in a later block saw what the finished model feeds it, up to its own block.
    later = [ref for ref in layers(model) if ref.name in result.layers and ref.name.split(".")[: len(block)] != block]
    entry = {"tiny_bert": "2.attention.self.query", "tiny_llama": "2.self_attn.q_proj", "tiny_gpt2": "1.attn.c_attn"}
    entry |= {"tiny_t5": "decoder.block.1.layer.0.SelfAttention.q", "tiny_deit": "2.attn.qkv"}
    ref = next(ref for ref in later if ref.name.endswith(entry[build]))
    rows: list[Tensor] = []
    hook = ref.module.register_forward_pre_hook(lambda module, args: rows.append(ref.view.rows(args[0], module)))
    with torch.no_grad():
        model(batch) if isinstance(batch, Tensor) else model(**batch)
    hook.remove()
    expected = rows[0].double().square().sum(0)
    torch.testing.assert_close(noted.seen[ref.name].square_sum, expected, rtol=1e-5, atol=1e-6)
