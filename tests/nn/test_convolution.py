"""A packed weight inside unmodified convolutions: it computes, copies, saves, compiles, never turns dense by itself."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.core import BundleError, KernelError, Plan
from sparsewright.hardware import pack_
from sparsewright.layouts import pack
from sparsewright.models import layers, sparsify_
from sparsewright.nn import SparseTensor, allow_loading, as_parameter, dispatch_report, masks

# Float32 sums of a few hundred terms, in another order.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def pair(dims: int = 2, pattern: str = "4x1@50%", **options: Any) -> tuple[Any, Any]:
    """A convolution that runs packed, and the dense one that it must equal."""
    torch.manual_seed(0)
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
    dense = kind(8, 16, 3, **options).eval()
    matrix = dense.weight.detach().flatten(1)
    mask = (torch.arange(matrix.shape[1]) % 2 == 0).expand(matrix.shape)
    packed = pack(matrix, mask, "vector", pattern)
    sparse = copy.deepcopy(dense)
    sparse.weight = as_parameter(SparseTensor(packed, view_shape=tuple(dense.weight.shape)))
    with torch.no_grad():
        dense.weight.copy_(torch.where(mask, matrix, 0).view(dense.weight.shape))
    return sparse, dense


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "circular", "stride": 2},
    ],
)
@pytest.mark.parametrize("dims", [1, 2])
def test_an_unmodified_convolution_runs_it(dims: int, options: dict[str, Any]) -> None:
    sparse, dense = pair(dims, **options)
    for batch in ((2,), ()):
        x = torch.randn(*batch, 8, *[11] * dims)
        with torch.no_grad():
            torch.testing.assert_close(sparse(x), dense(x), **CLOSE)


def test_groups_of_channels_run_or_are_refused_with_the_reason() -> None:
    sparse, dense = pair(groups=2)
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x), **CLOSE)
    wide, _ = pair(groups=2, pattern="16x1@50%")
    with pytest.raises(KernelError, match="16 rows"):
        wide(x)


def test_gradients_reach_inputs_and_bias() -> None:
    sparse, dense = pair(stride=2, padding=1)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    sparse(x).square().sum().backward()
    dense(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **CLOSE)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, **CLOSE)


def test_channels_last_models_stay_channels_last() -> None:
    sparse, dense = pair(padding=1)
    sparse = sparse.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = sparse(x)
        torch.testing.assert_close(y, dense(x), **CLOSE)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_it_has_the_true_shape_and_gives_dense_values_on_request_only() -> None:
    sparse, dense = pair()
    assert sparse.weight.shape == dense.weight.shape == (16, 8, 3, 3)
    assert torch.equal(sparse.weight.dense(), dense.weight)
    for operation in (
        lambda w: w + 1,
        lambda w: w.flatten(1),
        lambda w: w.transpose(0, 1),
        lambda w: w.permute(2, 3, 1, 0),
        lambda w: torch.randn(3, 16) @ w,
        lambda w: F.linear(torch.randn(3, 72), w),
        lambda w: F.conv_transpose2d(torch.randn(1, 16, 4, 4), w),
        lambda w: F.conv2d(w, torch.randn(4, 8, 1, 1)),
    ):
        with pytest.raises(KernelError, match=r"\.dense\(\)"):
            operation(sparse.weight)
    with pytest.raises(KernelError, match="can be seen as"):
        SparseTensor(sparse.weight.packed, view_shape=(16, 8, 3, 4))


def test_copies_state_dicts_and_files_keep_the_shape() -> None:
    sparse, dense = pair()
    x = torch.randn(1, 8, 9, 9)
    allow_loading()
    stream = io.BytesIO()
    torch.save(sparse.state_dict(), stream)
    stream.seek(0)
    assigned = nn.Conv2d(8, 16, 3)
    assigned.load_state_dict(torch.load(stream, weights_only=True), assign=True)
    copied = copy.deepcopy(sparse)
    copied.weight.packed.tensors["values"].zero_()
    refilled = copy.deepcopy(copied)
    refilled.load_state_dict(sparse.state_dict())
    with torch.no_grad():
        for layer in (sparse, assigned, refilled):
            assert layer.weight.shape == (16, 8, 3, 3)
            torch.testing.assert_close(layer(x), dense(x), **CLOSE)
        half = copy.deepcopy(sparse).half()
    assert half.weight.shape == (16, 8, 3, 3)
    assert half.weight.packed.value_dtype == torch.float16
    assert copy.deepcopy(sparse).to("meta")(x.to("meta")).shape == (1, 16, 7, 7)
    function, parts = sparse.weight.__reduce_ex__(2)
    for wrong in ((16, 8, 3, 4), (8, 16, 3, 3), [16, 8, 3, 3], (16, 8, 3, 3.0)):
        with pytest.raises(BundleError):
            function(*parts[:-1], wrong)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*parts, nn.Conv2d(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def packed_model(pattern: str = "4x1@50%", value_dtype: Any = None) -> tuple[nn.Sequential, nn.Sequential]:
    model = small_model()
    sparsify_(model, pattern, method="magnitude", include=["2", "4"])
    masked = copy.deepcopy(model)
    rows = pack_(model, force=True, value_dtype=value_dtype)
    assert [row.packed for row in rows] == [value_dtype != "int8"] * 2
    return model, masked


@pytest.mark.parametrize("pattern", ["4x1@50%", "2:4x4", "30%"])
def test_a_packed_model_answers_as_the_masked_one(pattern: str) -> None:
    model, masked = packed_model(pattern)
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(x), masked(x), **CLOSE)
    found, expected = masks(model), masks(masked)
    assert list(found) == list(expected) == ["2", "4"]
    assert all(torch.equal(found[name], expected[name]) for name in found)
    rows = {row.name: row for row in dispatch_report(model)}
    assert (rows["2"].state, rows["2"].kernel, rows["2"].shape) == ("packed", "pixel_lane", (32, 144))
    assert rows["0"].state == "dense"
    refs = {ref.name: ref for ref in layers(model)}
    assert refs["2"].runs_packed
    assert refs["2"].get_packed() is model[2].weight.packed


def test_int8_convolutions_stay_masked_with_the_reason() -> None:
    model, _ = packed_model("4x1@50%", "int8")
    assert model[2].weight_mask is not None
    (row, _) = pack_(model, force=True, value_dtype="int8")
    assert "no kernel for int8" in row.reason


def test_a_layer_takes_a_packed_weight_through_its_reference() -> None:
    model = small_model()
    ref = next(ref for ref in layers(model) if ref.name == "2")
    mask = torch.arange(144).expand(32, 144) % 2 == 0
    packed = pack(ref.get_weight(), mask, "vector", "4x1@50%")
    ref.set_packed(packed)
    assert model[2].weight.shape == (32, 16, 3, 3)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("packed_first", [True, False])
def test_a_bundle_brings_packed_convolutions_back_bit_for_bit(tmp_path: Path, packed_first: bool) -> None:
    model, masked = packed_model("4x1@50%")
    path = tmp_path / "model.safetensors"
    plan = None if packed_first else Plan.uniform(["2", "4"], "4x1@50%")
    sw.save(model if packed_first else masked, path, plan=plan)
    again = sw.load(path, model=small_model())
    assert isinstance(again[2].weight, SparseTensor)
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@pytest.mark.slow
def test_compile_takes_the_whole_graph_for_any_batch_and_format() -> None:
    model, masked = packed_model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, size in ((2, 12), (3, 10)):
            x = torch.randn(batch, 3, size, size)
            torch.testing.assert_close(compiled(x), masked(x), **CLOSE)
            x = x.to(memory_format=torch.channels_last)
            torch.testing.assert_close(compiled(x), masked(x), **CLOSE)


@pytest.mark.slow
def test_export_keeps_the_packed_operator_with_a_dynamic_batch() -> None:
    model, masked = packed_model()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.randn(4, 3, 12, 12),), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("sparsewright.conv2d" in target for target in targets) == 2
    x = torch.randn(7, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), masked(x), **CLOSE)
