"""Whatever people do with a model works on one whose weights are packed: torch's, transformers' and timm's own."""

import copy
import io
from pathlib import Path

import pytest
import torch
from packed_models import CASES, Case
from torch import Tensor, nn

from sparsewright import load, masks, pack_, save
from sparsewright.nn import SparseTensor, allow_loading

EVERY_MODEL = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
VALUES = pytest.mark.parametrize("values", ["fp32", "int8"])


def packed_names(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters(remove_duplicate=False) if isinstance(value, SparseTensor)]


def require_tied(model: nn.Module, case: Case, packed_only: bool = False) -> None:
    for first, second in case.tied:
        if packed_only and not isinstance(model.get_parameter(first), SparseTensor):
            continue
        assert model.get_parameter(first) is model.get_parameter(second), (first, second)


@EVERY_MODEL
def test_a_packed_model_answers_as_its_masked_self(case: Case) -> None:
    model = case.packed_model()
    assert {f"{name}.weight" for name in case.packed} <= set(packed_names(model))
    torch.testing.assert_close(case.run(model), case.run(case.masked()), rtol=1e-4, atol=1e-5)
    require_tied(model, case)


@EVERY_MODEL
def test_state_dict_has_the_keys_of_the_dense_model_in_their_order(case: Case) -> None:
    model = case.packed_model()
    dense = case.dense()
    assert list(model.state_dict()) == list(dense.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in dense.named_parameters()]
    for name, value in model.state_dict().items():
        assert value.shape == dense.state_dict()[name].shape
        assert value.dtype == dense.state_dict()[name].dtype


@EVERY_MODEL
@VALUES
def test_a_deep_copy_answers_the_same_and_shares_nothing(case: Case, values: str) -> None:
    model = case.packed_model(value_dtype=values)
    expected = case.run(model)
    copied = copy.deepcopy(model)
    require_tied(copied, case)
    for name in packed_names(model):
        ours, theirs = model.get_parameter(name).packed.tensors, copied.get_parameter(name).packed.tensors
        assert {tensor.data_ptr() for tensor in ours.values()}.isdisjoint(t.data_ptr() for t in theirs.values())
        ours["values"].zero_()
    assert torch.equal(case.run(copied), expected)


@EVERY_MODEL
@VALUES
def test_float64_and_back_changes_no_bit(case: Case, values: str) -> None:
    model = case.packed_model(value_dtype=values)
    expected = case.run(model)
    before = {name: model.get_parameter(name).dense() for name in packed_names(model)}
    model.double()
    for name, weight in before.items():
        seen = model.get_parameter(name)
        assert seen.dtype == torch.float64
        assert torch.equal(seen.dense(), weight.double())
    require_tied(model, case)
    model.float()
    assert torch.equal(case.run(model), expected)
    require_tied(model, case)


@EVERY_MODEL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_round_every_value_once(case: Case, dtype: torch.dtype) -> None:
    model = case.packed_model()
    before = {name: model.get_parameter(name).dense() for name in packed_names(model)}
    if dtype == torch.float16:
        model.half()
    else:
        model.to(dtype)
    for name, weight in before.items():
        seen = model.get_parameter(name)
        assert isinstance(seen, SparseTensor)
        assert seen.dtype == seen.packed.value_dtype == dtype
        assert torch.equal(seen.dense(), weight.to(dtype))
    require_tied(model, case)
    tolerance = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    answer, reference = case.run(model, dtype=dtype), case.run(case.masked().to(dtype), dtype=dtype)
    assert answer.dtype == reference.dtype == dtype
    torch.testing.assert_close(answer, reference, **tolerance)
    model.to(torch.float32)
    for name, weight in before.items():
        assert torch.equal(model.get_parameter(name).dense(), weight.to(dtype).float())


@EVERY_MODEL
def test_it_goes_to_the_meta_device_and_comes_back_by_assignment(case: Case) -> None:
    model = case.packed_model()
    expected = case.run(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.to("meta")
    assert all(value.is_meta for value in model.state_dict().values())
    assert case.run(model, device="meta").shape == expected.shape
    # Torch itself unties dense weights on the way to the meta device.
    require_tied(model, case, packed_only=True)
    model.load_state_dict(state, assign=True)
    for name, value in buffers.items():
        # Buffers that no state dict holds, such as positions, are the model's own to make again.
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._buffers[leaf] = value
    assert torch.equal(case.run(model), expected)


@EVERY_MODEL
@VALUES
def test_torch_save_and_load_with_weights_only_are_bit_exact(case: Case, values: str) -> None:
    allow_loading()
    model = case.packed_model(value_dtype=values)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert list(state) == list(model.state_dict())
    fresh = case.dense()
    fresh.load_state_dict(state, assign=True)
    assert packed_names(fresh) == packed_names(model)
    assert torch.equal(case.run(fresh), case.run(model))
    # Read anew: torch marks a state that was assigned once, and would assign it again.
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    copied = case.packed_model(value_dtype=values)
    with torch.no_grad():
        for name in packed_names(copied):
            copied.get_parameter(name).packed.tensors["values"].zero_()
    copied.load_state_dict(state)
    assert torch.equal(case.run(copied), case.run(model))
    require_tied(copied, case)


@EVERY_MODEL
@VALUES
def test_a_bundle_round_trip_is_bit_exact_and_keeps_ties(tmp_path: Path, case: Case, values: str) -> None:
    model = case.packed_model(value_dtype=values)
    config = {"img_size": 32} if "x" in case.inputs else None
    save(model, tmp_path / "m.safetensors", config=config)
    goal = case.dense()
    again = load(tmp_path / "m.safetensors", model=goal)
    assert again is goal
    assert packed_names(again) == packed_names(model)
    assert torch.equal(case.run(again), case.run(model))
    require_tied(again, case)
    save(again, tmp_path / "n.safetensors", config=config)
    assert (tmp_path / "n.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


@EVERY_MODEL
def test_a_masked_model_is_packed_on_the_way_into_a_bundle_with_its_ties(tmp_path: Path, case: Case) -> None:
    save(case.masked(), tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", model=case.dense())
    packed = case.packed_model()
    assert packed_names(again) == packed_names(packed)
    torch.testing.assert_close(case.run(again), case.run(packed), rtol=1e-4, atol=1e-5)
    require_tied(again, case)


def shared_linears(second: Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[2].weight = model[0].weight
    model[0].register_buffer("weight_mask", torch.arange(64).expand(64, 64) % 4 < 2)
    model[2].register_buffer("weight_mask", second)
    with torch.no_grad():
        model[0].weight.mul_(model[0].weight_mask)
    return model


def test_layers_that_shared_a_weight_share_its_packed_form_if_they_were_masked_alike() -> None:
    same = torch.arange(64).expand(64, 64) % 4 < 2
    x = torch.randn(5, 64)
    for mask, tied in ((same, True), (same & (torch.arange(64) % 8 < 4), False)):
        model = shared_linears(mask.clone())
        with torch.no_grad():
            expected = model[2].bias + torch.relu(model[0](x)) @ (model[2].weight * mask).T
        rows = pack_(model, force=True)
        assert [row.packed for row in rows] == [True, True]
        assert (model[0].weight is model[2].weight) is tied
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_masked_convolution_comes_back_packed_and_shared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    model[1].weight = model[0].weight
    mask = torch.rand(8, 8, 1, 1) < 0.5
    for layer in model:
        layer.register_buffer("weight_mask", mask.clone())
    with torch.no_grad():
        model[0].weight.mul_(mask)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", model=copy.deepcopy(model))
    assert again[0].weight is again[1].weight
    assert torch.equal(masks(again)["0"], mask)
    assert torch.equal(masks(again)["1"], mask)
