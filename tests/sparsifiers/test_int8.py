"""Int8 in the same pass: on the grid that is stored, and better than rounding afterwards."""

import pytest
import torch
from torch import nn

from sparsewright.hardware import pack_
from sparsewright.layouts import layouts, pack
from sparsewright.layouts.rounding import quantise
from sparsewright.models import layers, sparsify_
from sparsewright.sparsifiers import reconstruction_error, sparsifiers
from sparsewright.testing.examples import sample_stats, sample_weight

JOINT = ["sparsegpt", "alps"]


@pytest.mark.parametrize("method", JOINT)
@pytest.mark.parametrize("pattern", ["2:4", "8:16t", "50%"])
def test_the_joint_pass_loses_less_than_rounding_afterwards(method: str, pattern: str) -> None:
    weight, stats = sample_weight((48, 160)), sample_stats(160, tokens=1000)
    exact = sparsifiers.get(method).sparsify(weight, stats, pattern)
    joint = sparsifiers.get(method).sparsify(weight, stats, pattern, value_dtype="int8")
    nearest = layouts.get("int8_weights").rounded(exact.weight, torch.int8)
    base = reconstruction_error(weight, exact.weight, stats)
    after, ours = (reconstruction_error(weight, w, stats) - base for w in (nearest, joint.weight))
    assert torch.equal(joint.mask, exact.mask)
    assert ours < 0.85 * after


@pytest.mark.parametrize("method", ["magnitude", *JOINT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layout_gives_the_weights_back_bit_by_bit(method: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        weight, stats = sample_weight((64, 48), seed=seed, dtype=dtype), sample_stats(48)
        found = sparsifiers.get(method).sparsify(weight, stats, "2:4", value_dtype="int8")
        packed = pack(found.weight, found.mask, "int8_weights", "2:4", torch.int8)
        assert torch.equal(packed.unpack().to(dtype), found.weight)
        assert int(quantise(found.weight)[0].abs().max()) == 127


def test_a_model_sparsified_to_int8_packs_to_the_same_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    data = [torch.randn(64, 32) for _ in range(2)]
    result = sparsify_(model, "2:4", method="sparsegpt", data=data, include=["0", "2"], value_dtype="int8")
    assert {layer.value_dtype for layer in result.plan.layers.values()} == {"int8"}
    before = {name: model.get_submodule(name).weight.detach().clone() for name in result.layers}
    pack_(model, plan=result.plan, force=True)
    packed = {ref.name: ref.get_packed() for ref in layers(model)}
    for name, weight in before.items():
        found = packed[name]
        assert found is not None
        assert found.value_dtype == torch.int8
        assert torch.equal(found.unpack(), weight)
    # The same without the plan.
    again = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    sparsify_(again, "2:4x4", include=["0"], value_dtype="int8")
    weight = again[0].weight.detach().clone()
    pack_(again, value_dtype="int8", force=True)
    assert torch.equal(layers(again)[0].get_packed().unpack(), weight)  # type: ignore[union-attr]


def test_rows_that_keep_nothing_and_rows_of_one_value_stay_as_they_are() -> None:
    weight = torch.zeros(4, 16)
    weight[0, 3] = 1e-30
    weight[1, :] = 0.3
    found = sparsifiers.get("sparsegpt").sparsify(weight, sample_stats(16), "2:4", value_dtype="int8")
    assert not found.weight[2:].any()
    packed = pack(found.weight, found.mask, "int8_weights", "2:4", torch.int8)
    assert torch.equal(packed.unpack(), found.weight)
