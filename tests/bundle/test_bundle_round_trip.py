"""What is saved comes back: weights, masks, ties, dtypes; the same bytes for the same model."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from bundle_models import TwoLayers, mask_layer, pack_layer
from safetensors import safe_open
from torch import nn

from sparsewright.bundle import BundleReader, inspect, load, save, verify
from sparsewright.core import (
    BundleError,
    LayerPlan,
    ModelError,
    NumericError,
    Plan,
    PlanError,
    SparsewrightError,
    parse_pattern,
)
from sparsewright.hardware import dynamic_int8, pack_
from sparsewright.layouts import pack
from sparsewright.models import layers, sparsify_
from sparsewright.nn import SparseTensor, as_parameter, masks
from sparsewright.solvers import solve_mask

Make = Callable[..., TwoLayers]
TOKENS = torch.arange(24).view(4, 6)


def forward(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        hidden = model.embed(TOKENS)
        return model.head(hidden + model.second(torch.relu(model.first(hidden))))


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "1:4x16", "4:8", "50%", "4x1@25%", "16x1@50%", "2:4t", "3:6:4"])
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16])
def test_a_packed_weight_comes_back_bit_equal(tmp_path: Path, pattern: str, value_dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 10))
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    if pattern in ("2:4t", "3:6:4"):
        mask = regular_mask(pattern)
        packed = pack(layer.weight.detach(), mask, pattern=pattern, value_dtype=value_dtype)
        layer._parameters["weight"] = as_parameter(SparseTensor(packed))
    else:
        pack_layer(layer, pattern, value_dtype)
    before = layer.weight
    assert isinstance(before, SparseTensor)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 10)))
    after = again[0].weight
    assert isinstance(after, SparseTensor)
    assert after.packed.pattern == before.packed.pattern
    assert after.packed.value_dtype == value_dtype
    for name, tensor in before.packed.tensors.items():
        assert torch.equal(after.packed.tensors[name], tensor)
    assert torch.equal(again[2].weight, model[2].weight)


INT8 = dict.fromkeys(("dense", "2:4x4", "1:4x16", "4x1@25%", "16x1@50%", "4x1@2%"), "int8")
INT8 |= dict.fromkeys(("2:4", "50%", "3:6:4"), "int8_weights")


@pytest.mark.parametrize("pattern", INT8)
def test_an_int8_weight_comes_back_bit_equal_whatever_floats_are_stored_as(tmp_path: Path, pattern: str) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(48, 100), nn.ReLU(), nn.Linear(100, 10))

    torch.manual_seed(1)
    model = build().eval()
    sizes = {}
    for stored in (None, "fp16"):
        weight = model[0].weight.detach() if stored is None else model[0].weight.dense()
        mask = torch.ones_like(weight, dtype=torch.bool) if pattern == "dense" else solve_mask(weight.abs(), pattern)
        if stored is None:
            packed = pack(weight, mask, pattern=pattern, value_dtype=torch.int8)
            model[0]._parameters["weight"] = as_parameter(SparseTensor(packed))
        path = tmp_path / f"{stored}.safetensors"
        save(model, path, dense_dtype="fp16", value_dtype=stored)
        assert verify(path).ok
        again = load(path, build()).eval()
        after = again[0].weight
        assert isinstance(after, SparseTensor)
        assert (after.packed.layout, after.packed.value_dtype) == (INT8[pattern], torch.int8)
        for name, tensor in model[0].weight.packed.tensors.items():
            assert torch.equal(after.packed.tensors[name], tensor), name
        x = torch.randn(5, 48)
        with torch.no_grad():
            assert torch.equal(again[0](x), nn.functional.linear(x, after, again[0].bias))
        sizes[stored] = inspect(path).size_bytes
    assert sizes[None] == sizes["fp16"]


def test_a_masked_model_is_saved_with_the_value_types_of_its_plan(tmp_path: Path, make_model: Make) -> None:
    model = make_model(first=None, second=None)
    mask_layer(model.first, "2:4x4")
    mask_layer(model.second, "50%")
    plan = Plan(
        {
            "first": LayerPlan(parse_pattern("2:4x4"), value_dtype="int8"),
            "second": LayerPlan(parse_pattern("50%"), value_dtype="int8"),
        }
    )
    save(model, tmp_path / "m.safetensors", plan=plan)
    again = load(tmp_path / "m.safetensors", TwoLayers())
    assert again.first.weight.packed.value_dtype == torch.int8
    assert (again.first.weight.packed.layout, again.second.weight.packed.layout) == ("int8", "int8_weights")
    assert again.second.weight.packed.value_dtype == torch.int8


def regular_mask(pattern: str) -> torch.Tensor:
    """A mask of the two patterns that have no solver on this floor."""
    if pattern == "2:4t":
        tile = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)
        return tile.repeat(24, 12)
    patterns = torch.combinations(torch.arange(6), 3)
    block = torch.zeros(6, 48, dtype=torch.bool)
    for column in range(48):
        block[patterns[column % 20], column] = True
    return block.repeat(16, 1)


def test_the_loaded_model_computes_what_the_saved_one_did(tmp_path: Path, make_model: Make) -> None:
    model = make_model()
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", TwoLayers().eval())
    assert torch.equal(forward(again), forward(model))


def test_masks_come_back(tmp_path: Path, make_model: Make) -> None:
    model = make_model(None, None)
    mask_layer(model.first, "2:4x4")
    mask_layer(model.second, "50%")
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", TwoLayers())
    expected, found = masks(model), masks(again)
    assert set(expected) == set(found) == {"first", "second"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "weight_mask" not in again.first._buffers


def test_a_masked_layer_is_packed_by_the_pattern_read_off_its_mask(tmp_path: Path, make_model: Make) -> None:
    for pattern in ("2:4", "2:4x4", "1:4x16", "4:8", "25%", "4x1@50%", "16x1@25%"):
        model = make_model(None, None)
        mask_layer(model.first, pattern)
        save(model, tmp_path / "m.safetensors")
        assert {row.name: row.pattern for row in inspect(tmp_path / "m.safetensors").rows}["first"] == pattern


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "1:8x4", "3:6:4", "50%", "4x1@25%", "8x4@50%"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_masked_model_comes_back_masked_when_asked_to_the_last_bit(
    tmp_path: Path, pattern: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)).to(dtype)
    sparsify_(model, {"0": pattern})
    with torch.no_grad():
        # Zeros that are kept stay kept, whatever their sign.
        model[0].weight[model[0].weight_mask.nonzero()[0].tolist()] = 0.0
        model[0].weight[model[0].weight_mask.nonzero()[1].tolist()] = -0.0
    model[0].weight.requires_grad_(True)
    save(model, tmp_path / "m.safetensors")
    goal = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
    again = load(tmp_path / "m.safetensors", goal, masked=True)
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert again[0].weight.dtype == dtype
    assert again[0].weight.requires_grad
    assert str(layers(again)[0].get_pattern()) == pattern
    again(torch.randn(2, 64, dtype=dtype)).sum().backward()
    assert again[0].weight.grad is not None


def test_a_masked_layer_whose_dropped_weights_were_filled_is_not_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 96))
    sparsify_(model, "2:4")
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(ModelError, match=r"3,072 dropped weights of 0 are not zero any more.*keep_masks_"):
        save(model, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_masked_layers_come_back_where_packed_ones_were(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 16))

    model = build()
    sparsify_(model, {"0": "4x1@50%", "2": "2:4x4"})
    plan = Plan({"3": LayerPlan(parse_pattern("dense"), value_dtype="int8")})
    expected = {name: mask.clone() for name, mask in masks(model).items()}
    pack_(model, plan=plan, force=True)
    save(model, tmp_path / "m.safetensors")
    # Also into a model that holds packed weights already: dense ones take their place and learn.
    for goal in (build(), load(tmp_path / "m.safetensors", build())):
        again = load(tmp_path / "m.safetensors", goal, masked=True)
        assert not any(isinstance(parameter, SparseTensor) for parameter in again.parameters())
        assert all(parameter.requires_grad for parameter in again.parameters())
        # Of the dense int8 layer nothing was removed, so that it has no mask.
        found = {name: module.weight_mask for name, module in again.named_modules() if hasattr(module, "weight_mask")}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        for name in ("0", "2", "3"):
            assert torch.equal(again.get_submodule(name).weight, model.get_submodule(name).weight.dense())


def test_a_mask_that_keeps_less_than_its_pattern_allows_comes_back_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 96))
    for pattern in ("2:4", "2:4x4", "4x1@50%", "3:6:4"):
        sparsify_(model, {"0": pattern})
        mask = model[0].weight_mask
        mask &= torch.rand(mask.shape) < 0.9
        with torch.no_grad():
            model[0].weight.mul_(mask)
        for plan in (None, Plan.uniform(["0"], pattern)):
            save(model, tmp_path / "m.safetensors", plan=plan)
            again = load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(64, 96)), masked=True)
            assert torch.equal(again[0].weight_mask, mask)
            assert torch.equal(again[0].weight, model[0].weight)


def test_a_plan_decides_pattern_and_value_dtype_of_masked_layers(tmp_path: Path, make_model: Make) -> None:
    model = make_model(None, None)
    mask_layer(model.first, "2:4x4")
    save(model, tmp_path / "m.safetensors", plan=Plan.uniform(["first"], "2:4", "fp16"))
    row = next(row for row in inspect(tmp_path / "m.safetensors").rows if row.name == "first")
    assert (row.pattern, row.dtype) == ("2:4", "fp16")


def test_a_masked_convolution_comes_back_packed_with_its_mask(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    mask = torch.rand(16, 8, 3, 3) < 0.4
    # A zero that was kept stays kept.
    mask[0, 0, 0, 0] = True
    with torch.no_grad():
        model[0].weight.mul_(mask)
        model[0].weight[0, 0, 0, 0] = 0
    model[0].register_buffer("weight_mask", mask)
    save(model, tmp_path / "m.safetensors")
    assert verify(tmp_path / "m.safetensors").ok
    again = load(tmp_path / "m.safetensors", nn.Sequential(nn.Conv2d(8, 16, 3)))
    assert torch.equal(masks(again)["0"], mask)
    assert torch.equal(again[0].weight.dense(), model[0].weight)


def test_an_int8_plan_leaves_a_convolution_masked(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    mask = (torch.arange(72) % 2 == 0).expand(16, 72).reshape(16, 8, 3, 3).clone()
    with torch.no_grad():
        model[0].weight.mul_(mask)
    model[0].register_buffer("weight_mask", mask)
    save(model, tmp_path / "m.safetensors", plan=Plan.uniform(["0"], "4x1@50%", "int8"))
    again = load(tmp_path / "m.safetensors", nn.Sequential(nn.Conv2d(8, 16, 3)))
    assert torch.equal(again[0].weight_mask, mask)
    assert torch.equal(again[0].weight, model[0].weight)


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path, make_model: Make) -> None:
    path = tmp_path / "m.safetensors"
    save(make_model(), path)
    manifest = inspect(path).manifest
    assert manifest.aliases == {"head.weight": "embed.weight"}
    assert "head.weight" not in manifest.tensors
    again = load(path, TwoLayers(tied=False))
    assert again.head.weight is again.embed.weight


def test_fp16_storage_gives_float32_back_and_says_so(tmp_path: Path, make_model: Make) -> None:
    model = make_model()
    with torch.no_grad():
        model.norm.weight[3] = 1e6
    path = tmp_path / "m.safetensors"
    save(model, path, dense_dtype="fp16")
    told = inspect(path).manifest.dense_dtype
    assert told["embed.weight"] == ("F16", "F32")
    # What overflows float16, buffers and integers stay as they are.
    assert not {"norm.weight", "norm.running_var", "norm.num_batches_tracked"} & set(told)
    again = load(path, TwoLayers())
    assert again.embed.weight.dtype == torch.float32
    assert torch.equal(again.embed.weight, model.embed.weight.half().float())
    assert again.norm.weight[3] == 1e6


def test_equal_models_give_equal_bytes(tmp_path: Path, make_model: Make) -> None:
    for name in ("a", "b"):
        save(make_model(), tmp_path / name, quality={"value": 0.5})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_content_digest_leaves_measured_fields_out(tmp_path: Path, make_model: Make) -> None:
    save(make_model(), tmp_path / "a", measured={"latency_s": 0.1}, created=datetime(2026, 1, 1, tzinfo=UTC))
    save(make_model(), tmp_path / "b", measured={"latency_s": 0.2})
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
    assert inspect(tmp_path / "a").manifest.content_digest == inspect(tmp_path / "b").manifest.content_digest


def test_the_stock_reader_reads_our_file_and_tensors_are_aligned(bundle: Path) -> None:
    with safe_open(bundle, framework="pt") as stock:
        names = [name for name in stock.keys() if not name.startswith("__pad__")]  # noqa: SIM118
        assert {"first.weight.L1.values", "first.weight.L1.index", "embed.weight"} <= set(names)
        assert json.loads(stock.metadata()["sparsewright"])["format"] == "sparsewright"
        assert stock.get_tensor("embed.weight").dtype == torch.float16
    with BundleReader(bundle) as reader:
        assert reader.header.data_start % 64 == 0
        assert all(entry.start % 64 == 0 for name, entry in reader.header.entries.items() if "__pad__" not in name)
        with safe_open(bundle, framework="pt") as stock:
            assert all(torch.equal(reader.tensor(name), stock.get_tensor(name)) for name in names)


@pytest.mark.parametrize(
    "pattern", ["2:4", "2:4x4", "4:8", "1:4x4", "2:4x16", "50%", "10%", "4x1@50%", "4x1@25%", "16x1@25%"]
)
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(384, 384), (1536, 384)])
def test_packed_bytes_stay_within_three_percent_of_theory(
    tmp_path: Path, pattern: str, value_dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    pack_layer(layer, pattern, value_dtype)
    save(layer, tmp_path / "m.safetensors")
    row = inspect(tmp_path / "m.safetensors").rows[0]
    assert row.name == ""
    assert row.size_bytes <= 1.03 * row.theoretical_bytes


def test_a_model_that_is_itself_a_layer_round_trips(tmp_path: Path) -> None:
    layer = nn.Linear(64, 64)
    pack_layer(layer, "2:4x4")
    save(layer, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", nn.Linear(64, 64))
    x = torch.randn(3, 64)
    assert torch.equal(again(x), layer(x))


def test_the_file_may_vanish_after_loading(tmp_path: Path, make_model: Make) -> None:
    path = tmp_path / "m.safetensors"
    save(make_model(), path)
    again = load(path, TwoLayers().eval())
    path.write_bytes(b"")
    assert torch.equal(forward(again), forward(make_model()))


def test_what_is_no_model_or_no_plan_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"A model is a torch\.nn\.Module, got str"):
        load(bundle, "TwoLayers")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="A plan says what each layer gets"):
        save(TwoLayers(64), tmp_path / "other.safetensors", plan="2:4")  # type: ignore[arg-type]
    assert not (tmp_path / "other.safetensors").exists()


def test_a_bundle_for_another_model_is_refused_and_nothing_is_changed(bundle: Path) -> None:
    model = TwoLayers(32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BundleError, match="does not fit the model"):
        load(bundle, model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_unknown_level_is_refused_with_the_known_ones(bundle: Path) -> None:
    with pytest.raises(BundleError, match="levels L1"):
        load(bundle, TwoLayers(), level="L2")


def test_an_own_model_without_its_code_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="model="):
        load(bundle)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, make_model: Make, bad: float) -> None:
    model = make_model()
    with torch.no_grad():
        model.embed.weight[2, 5] = bad
    with pytest.raises(NumericError, match=r"embed\.weight.*\[2, 5\]"):
        save(model, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_quality_that_json_cannot_hold_is_refused(tmp_path: Path, make_model: Make) -> None:
    with pytest.raises(SparsewrightError, match="plain"):
        save(make_model(), tmp_path / "m.safetensors", quality={"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_layers_of_torchs_own_quantisation_are_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(dynamic_int8(nn.Linear(64, 64)))
    with pytest.raises(BundleError, match="torch's own quantisation, but '0'"):
        save(model, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
