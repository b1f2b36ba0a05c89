"""Laws of masked adapters: merging changes no answer and no zero."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsewright import masks, pack_, sparsify_
from sparsewright.core import DataError, ModelError, NumericError, RecipeError
from sparsewright.training import add_lora_, load_lora_, lora_state_dict, merge_lora_, merge_peft_lora


class Small(nn.Module):
    """A convolution, a linear, two tied linears, and one that stays dense."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.first = nn.Linear(128, 32)
        self.second = nn.Linear(32, 32)
        self.third = nn.Linear(32, 32)
        self.third.weight = self.second.weight
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(torch.relu(self.conv(x)).flatten(1)))
        return self.head(torch.tanh(self.third(torch.tanh(self.second(hidden)))))


def masked(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = Small()
    sparsify_(model, {"conv": "50%", "first": "2:4", "second": "2:4t"})
    return model


def x() -> torch.Tensor:
    return torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, parameters: Any, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x()), torch.arange(16) % 5).backward()
        optimizer.step()


def test_merging_changes_no_answer_keeps_every_zero_and_every_name() -> None:
    model = masked()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = model(x()).detach()
    adapters = add_lora_(model, rank=4, alpha=8)
    # conv, first, and one for the tied pair
    assert len(adapters) == 6
    torch.testing.assert_close(model(x()), dense, rtol=0, atol=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in adapters}
    train(model, adapters)
    adapted = model(x()).detach()
    assert float((adapted - dense).abs().max()) > 0.1
    assert merge_lora_(model) == ["conv", "first", "second"]
    torch.testing.assert_close(model(x()), adapted, rtol=1e-5, atol=1e-6)
    after = model.state_dict()
    assert set(after) == set(before)
    assert model.third.weight is model.second.weight
    assert type(model.first) is nn.Linear
    for name, mask in masks(model).items():
        weight = model.get_submodule(name).weight
        assert not weight.detach()[~mask].any()
        assert not torch.equal(weight, before[f"{name}.weight"])
        assert torch.equal(mask, before[f"{name}.weight_mask"])
    for name in ("head.weight", "first.bias"):
        assert torch.equal(after[name], before[name])


def test_a_change_is_alpha_over_rank_times_the_masked_product() -> None:
    model = masked()
    before = model.first.weight.detach().clone()
    lora_a, lora_b = add_lora_(model, rank=4, alpha=6, include=["first"])
    with torch.no_grad():
        lora_b.normal_()
    merge_lora_(model)
    expected = before + 1.5 * (lora_b @ lora_a) * model.first.weight_mask
    torch.testing.assert_close(model.first.weight.detach(), expected.detach())


def test_adapters_alone_are_saved_and_loaded() -> None:
    model = masked()
    other = copy.deepcopy(model)
    train(model, add_lora_(model, rank=2))
    state = {name: value.clone() for name, value in lora_state_dict(model).items()}
    assert set(state) == {f"{layer}.lora_{which}" for layer in ("conv", "first", "second") for which in "ab"}
    add_lora_(other, rank=2)
    load_lora_(other, state)
    assert torch.equal(other(x()), model(x()))
    with pytest.raises(DataError, match="is not"):
        load_lora_(other, {"first.lora_a": state["first.lora_a"]})


def test_layers_of_gpt2_are_seen_the_right_way_round() -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    model: Any = nn.Sequential(Conv1D(24, 32))
    sparsify_(model, {"0": "1:4"})
    inputs = torch.randn(8, 32)
    lora_a, lora_b = add_lora_(model, rank=2)
    assert (lora_a.shape, lora_b.shape) == ((2, 32), (24, 2))
    with torch.no_grad():
        lora_b.normal_()
    adapted = model(inputs)
    merge_lora_(model)
    torch.testing.assert_close(model(inputs), adapted)
    assert not model[0].weight.detach()[~model[0].weight_mask].any()


def test_adapters_that_are_not_finite_are_named_and_change_nothing() -> None:
    model = masked()
    add_lora_(model)
    good = {name: values.clone() for name, values in lora_state_dict(model).items()}
    bad = {**good, "second.lora_b": torch.full_like(good["second.lora_b"], float("nan"))}
    with pytest.raises(NumericError, match=r"adapter second\.lora_b"):
        load_lora_(model, {name: values + 1 for name, values in bad.items()})
    for odd in (None, {"first.lora_a": None}):
        with pytest.raises(DataError, match="map names to tensors"):
            load_lora_(model, odd)  # type: ignore[arg-type]
    assert all(torch.equal(values, good[name]) for name, values in lora_state_dict(model).items())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.second.parametrizations.weight[0].lora_b[0, 0] = math.inf
    with pytest.raises(NumericError, match="weight of second with its adapter"):
        merge_lora_(model)
    assert set(lora_state_dict(model)) == set(good)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "lora" not in name)
    load_lora_(model, good)
    assert merge_lora_(model) == ["conv", "first", "second"]


def test_packing_asks_for_the_merge_first() -> None:
    model = masked()
    add_lora_(model, include=["first"])
    with pytest.raises(ModelError, match=r"that of first is computed from adapters.*Call merge_lora_ first"):
        pack_(model, force=True)
    merge_lora_(model)
    assert any(layer.packed for layer in pack_(model, force=True))


def test_mistakes_are_told_in_a_sentence() -> None:
    model = masked()
    with pytest.raises(RecipeError, match="rank=0"):
        add_lora_(model, rank=0)
    with pytest.raises(ModelError, match="no adapters to merge"):
        merge_lora_(model)
    with pytest.raises(ModelError, match="Call sparsify_ first"):
        add_lora_(model, include=["head"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    add_lora_(model)
    with pytest.raises(ModelError, match="has adapters already"):
        add_lora_(model)


def test_adapters_of_peft_are_merged_without_losing_a_zero() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    sparsify_(model, "2:4")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = model[0].base_layer.weight.detach().clone()
    change = model[0].get_delta_weight("default").detach()
    done = merge_peft_lora(wrapped)
    mask = done.model[0].weight_mask
    torch.testing.assert_close(done.model[0].weight.detach(), (before + change) * mask)
    assert set(done.lost) == {"0.weight", "2.weight"}
    assert done.lost["0.weight"] == pytest.approx(float((change * ~mask).norm() / change.norm()), rel=1e-4)
    for layer in (done.model[0], done.model[2]):
        assert not layer.weight.detach()[~layer.weight_mask].any()
    with pytest.raises(ModelError, match="takes a peft"):
        merge_peft_lora(done.model)
