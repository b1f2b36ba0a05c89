"""A packed weight inside unmodified modules: it computes, copies, moves, saves, and never turns dense by itself."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewright.core import BundleError, KernelError, ModelError
from sparsewright.kernels import why_not
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor, allow_loading, as_parameter, dense_layers, dispatch_report, masks

# Float32 products of 64 terms, summed in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def packed_pair(pattern: str = "2:4x4", out: int = 32, in_: int = 64, layout: str = "vector") -> tuple[Any, Tensor]:
    """A packed weight and the same weight dense."""
    torch.manual_seed(0)
    weight = torch.randn(out, in_)
    mask = (torch.arange(in_) % 4 < 2).expand(out, in_)
    return pack(weight, mask, layout=layout, pattern=pattern), torch.where(mask, weight, 0)


def linear_pair(**options: Any) -> tuple[nn.Linear, nn.Linear]:
    """A linear layer that runs packed, and the dense one that it must equal."""
    packed, dense = packed_pair(**options)
    sparse = nn.Linear(dense.shape[1], dense.shape[0])
    reference = copy.deepcopy(sparse)
    with torch.no_grad():
        reference.weight.copy_(dense)
    sparse.weight = as_parameter(SparseTensor(packed))
    return sparse, reference


@pytest.mark.parametrize("shape", [(64,), (1, 64), (7, 64), (2, 5, 64), (0, 64)])
@pytest.mark.parametrize("layout", ["vector", "masked"])
def test_an_unmodified_linear_runs_it(shape: tuple[int, ...], layout: str) -> None:
    sparse, dense = linear_pair(layout=layout)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x), **CLOSE)


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "4x1@50%", "50%"])
def test_every_pattern_runs(pattern: str) -> None:
    sparse, dense = linear_pair(pattern=pattern)
    x = torch.randn(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x), **CLOSE)


def test_gradients_reach_inputs_and_bias() -> None:
    sparse, dense = linear_pair()
    x = torch.randn(3, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    sparse(x).square().sum().backward()
    dense(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **CLOSE)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, **CLOSE)
    assert not sparse.weight.requires_grad


def test_products_with_its_transpose_are_linear_layers() -> None:
    packed, dense = packed_pair()
    weight, x, bias = SparseTensor(packed), torch.randn(3, 64), torch.randn(32)
    expected = x @ dense.T
    for product in (x @ weight.T, x @ weight.t(), torch.mm(x, weight.transpose(0, 1)), torch.matmul(x, weight.mT)):
        torch.testing.assert_close(product, expected, **CLOSE)
    torch.testing.assert_close(torch.addmm(bias, x, weight.T), expected + bias, **CLOSE)
    torch.testing.assert_close(torch.addmm(bias, x, weight.T, beta=2, alpha=3), 3 * expected + 2 * bias, **CLOSE)
    torch.testing.assert_close(weight @ x.T, expected.T, **CLOSE)


def test_a_conv1d_of_transformers_runs_it_transposed() -> None:
    from transformers.pytorch_utils import Conv1D

    packed, dense = packed_pair()
    layer = Conv1D(32, 64)
    layer.weight = as_parameter(SparseTensor(packed, transposed=True))
    x = torch.randn(2, 3, 64)
    assert layer.weight.shape == (64, 32)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, dense, layer.bias), **CLOSE)


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w + 1,
        lambda w: w.sum(),
        lambda w: w[0],
        lambda w: w.view(-1),
        lambda w: torch.ones_like(w),
        lambda w: w.numpy(),
        lambda w: torch.randn(3, 32) @ w,
        lambda w: F.linear(w, w),
        lambda w: torch.cat([w, w]),
        lambda w: F.conv1d(torch.randn(1, 64, 9), w.unsqueeze(-1)),
    ],
)
def test_whatever_would_need_dense_values_raises_and_tells_how_to_get_them(operation: Any) -> None:
    with pytest.raises((KernelError, RuntimeError)) as caught:
        operation(SparseTensor(packed_pair()[0]))
    assert isinstance(caught.value, KernelError) or "numpy" in str(caught.value)
    if isinstance(caught.value, KernelError):
        assert ".dense()" in str(caught.value)


def test_dense_values_come_on_request_only() -> None:
    packed, dense = packed_pair()
    assert torch.equal(SparseTensor(packed).dense(), dense)
    assert torch.equal(SparseTensor(packed, transposed=True).dense(), dense.T)


def test_it_prints_without_its_values() -> None:
    assert repr(SparseTensor(packed_pair()[0])).startswith("SparseTensor(2:4x4, shape=(32, 64), layout='vector'")


def test_copies_are_parameters_and_share_nothing() -> None:
    sparse, _ = linear_pair()
    copied = copy.deepcopy(sparse)
    assert isinstance(copied.weight, nn.Parameter)
    assert isinstance(copied.weight, SparseTensor)
    copied.weight.packed.tensors["values"].zero_()
    assert float(sparse.weight.packed.tensors["values"].abs().sum()) > 0


def test_a_tied_weight_stays_tied_in_a_copy() -> None:
    sparse, _ = linear_pair()
    other = nn.Linear(64, 32)
    other.weight = sparse.weight
    copied = copy.deepcopy(nn.Sequential(sparse, other))
    assert copied[0].weight is copied[1].weight


def test_state_dict_keeps_its_keys_and_loads_by_copy_and_by_assignment() -> None:
    sparse, dense = linear_pair()
    state = sparse.state_dict()
    assert list(state) == ["weight", "bias"]
    x = torch.randn(3, 64)
    other, _ = linear_pair()
    other.weight.packed.tensors["values"].zero_()
    other.load_state_dict(state)
    assigned = nn.Linear(64, 32)
    assigned.load_state_dict(state, assign=True)
    with torch.no_grad():
        torch.testing.assert_close(other(x), dense(x), **CLOSE)
        torch.testing.assert_close(assigned(x), dense(x), **CLOSE)


def test_dense_and_packed_weights_never_overwrite_each_other() -> None:
    sparse, dense = linear_pair()
    before = dense.weight.detach().clone()
    for target, source in ((sparse, dense), (dense, sparse)):
        with pytest.raises(RuntimeError, match="only be overwritten by a packed weight"):
            target.load_state_dict(source.state_dict())
    assert torch.equal(dense.weight, before)


@pytest.mark.parametrize("transposed", [False, True])
def test_it_saves_and_loads_with_weights_only(transposed: bool) -> None:
    allow_loading()
    packed, dense = packed_pair("4x1@50%")
    stream = io.BytesIO()
    torch.save({"weight": SparseTensor(packed, transposed)}, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=True)["weight"]
    assert isinstance(loaded, SparseTensor)
    assert torch.equal(loaded.dense(), dense.T if transposed else dense)
    assert str(loaded.packed.pattern) == "4x1@50%"


def test_a_file_cannot_be_read_onto_the_meta_device() -> None:
    stream = io.BytesIO()
    torch.save(linear_pair()[0].state_dict(), stream)
    stream.seek(0)
    with pytest.raises(BundleError, match=r"cannot be read onto the meta device, .* map_location='cpu'"):
        torch.load(stream, map_location="meta", weights_only=False)


def test_a_file_with_a_wrong_index_is_refused() -> None:
    allow_loading()
    weight = SparseTensor(packed_pair()[0])
    _, (stored, *_) = weight.__reduce_ex__(2)
    function, parts = stored.__reduce__()
    broken = list(parts)
    broken[4] = {**broken[4], "index": broken[4]["index"][:-1]}
    with pytest.raises(BundleError):
        function(*broken)


def test_moves_between_dtypes_change_how_values_are_stored() -> None:
    sparse, dense = linear_pair()
    half = copy.deepcopy(sparse).half()
    assert half.weight.dtype == torch.float16
    assert half.weight.packed.value_dtype == torch.float16
    assert half.weight.packed.size_bytes < 0.6 * sparse.weight.packed.size_bytes
    back = half.float()
    x = torch.randn(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(back(x), dense(x), rtol=1e-2, atol=1e-2)
    with pytest.raises(KernelError, match="Pack again"):
        sparse.weight.to(torch.int8)


def test_it_moves_to_the_meta_device_without_values() -> None:
    sparse, _ = linear_pair()
    moved = copy.deepcopy(sparse).to("meta")
    assert moved.weight.is_meta
    assert moved(torch.empty(3, 64, device="meta")).shape == (3, 32)


def test_it_goes_to_shared_memory_with_its_module() -> None:
    sparse, dense = linear_pair()
    sparse.share_memory()
    assert sparse.weight.is_shared()
    x = torch.randn(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x), **CLOSE)


def test_a_transformer_layer_of_torch_runs_packed_feed_forward_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 32, batch_first=True).eval()
    packed, dense = packed_pair()
    expected_layer = copy.deepcopy(layer)
    with torch.no_grad():
        expected_layer.linear1.weight.copy_(dense)
    layer.linear1.weight = as_parameter(SparseTensor(packed))
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected_layer(x), **CLOSE)


def test_masks_come_from_buffers_and_from_packed_weights() -> None:
    sparse, dense = linear_pair()
    masked = nn.Linear(4, 4)
    masked.register_buffer("weight_mask", torch.eye(4, dtype=torch.bool))
    model = nn.ModuleDict({"packed": sparse, "masked": masked, "dense": dense})
    found = masks(model)
    assert list(found) == ["packed", "masked"]
    assert torch.equal(found["packed"], (torch.arange(64) % 4 < 2).expand(32, 64))
    assert torch.equal(found["masked"], torch.eye(4, dtype=torch.bool))


def test_a_kept_zero_is_in_the_mask_of_a_packed_weight() -> None:
    mask = (torch.arange(8) % 4 < 2).expand(6, 8)
    packed = pack(torch.zeros(6, 8), mask, layout="vector", pattern="2:4x4")
    layer = nn.Linear(8, 6)
    layer.weight = as_parameter(SparseTensor(packed))
    assert torch.equal(masks(layer)[""], mask)


def test_the_report_counts_dense_layers_and_names_kernels() -> None:
    sparse, dense = linear_pair()
    masked = nn.Linear(16, 16)
    masked.register_buffer("weight_mask", torch.ones(16, 16, dtype=torch.bool))
    rows = {row.name: row for row in dispatch_report(nn.ModuleDict({"a": sparse, "b": dense, "c": masked}), tokens=8)}
    assert rows["a"].state == "packed"
    assert rows["a"].kernel not in ("none", "torch dense")
    assert rows["a"].pattern == "2:4x4"
    assert (rows["b"].state, rows["b"].kernel) == ("dense", "torch dense")
    assert (rows["c"].state, rows["c"].kernel) == ("masked", "torch dense")
    assert all(row.reasons for row in (rows["b"], rows["c"]))
    stored_dense, _ = linear_pair(layout="masked")
    assert dense_layers(nn.ModuleList([sparse, stored_dense, dense])) == 2


@pytest.mark.slow
def test_compile_takes_the_whole_graph_for_any_number_of_tokens() -> None:
    sparse, dense = linear_pair()
    compiled = torch.compile(sparse, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (3, 7):
            x = torch.randn(tokens, 64)
            torch.testing.assert_close(compiled(x), dense(x), **CLOSE)


@pytest.mark.slow
def test_export_keeps_the_packed_operator_with_dynamic_tokens() -> None:
    sparse, dense = linear_pair()
    program = torch.export.export(sparse, (torch.randn(5, 64),), dynamic_shapes=({0: torch.export.Dim("tokens")},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("sparsewright.linear" in target for target in targets)
    assert not any("aten.mm" in target or "aten.addmm" in target for target in targets)
    x = torch.randn(9, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), dense(x), **CLOSE)


def int8_pair() -> tuple[nn.Linear, SparseTensor]:
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    mask = (torch.arange(64) % 4 < 2).expand(32, 64)
    weight[0, 0] = 1e-6  # kept, and rounded to zero
    layer = nn.Linear(64, 32)
    layer.weight = as_parameter(SparseTensor(pack(weight, mask, pattern="2:4x4", value_dtype=torch.int8)))
    return layer, layer.weight


def test_int8_weights_copy_save_and_are_seen_as_other_dtypes_without_losing_their_scales() -> None:
    layer, weight = int8_pair()
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
        assert torch.equal(torch.matmul(x, weight.T) + layer.bias, expected)
    allow_loading()
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    fresh = nn.Linear(64, 32)
    fresh.load_state_dict(torch.load(stream, weights_only=True), assign=True)
    with torch.no_grad():
        assert torch.equal(fresh(x), expected)
    seen = weight.to(torch.bfloat16)
    assert seen.dtype == torch.bfloat16
    assert seen.packed.value_dtype == torch.int8
    assert torch.equal(seen.packed.tensors["scale"], weight.packed.tensors["scale"])
    assert torch.equal(seen.to(torch.float32).dense(), weight.dense())


def test_a_kept_weight_that_rounds_to_zero_counts_as_kept() -> None:
    layer, weight = int8_pair()
    assert float(weight.dense()[0, 0]) == 0.0
    assert bool(masks(layer)[""][0, 0])
    assert int(masks(layer)[""].sum()) == 32 * 32
    (row,) = dispatch_report(layer, tokens=64)
    assert (row.state, row.layout, row.kernel) == ("packed", "int8", "int8_lane")


@pytest.mark.parametrize("tokens", [-3, 1.5, "a", None, True])
def test_tokens_that_count_nothing_are_refused(tokens: Any) -> None:
    layer, (packed, _) = nn.Linear(8, 8), packed_pair()
    for ask in (lambda: dispatch_report(layer, tokens=tokens), lambda: why_not(packed, tokens)):
        with pytest.raises(KernelError) as said:
            ask()
        assert str(said.value) == f"Tokens are the rows of x, a whole number of 0 or more, got {tokens!r}."
    assert dispatch_report(layer, tokens=0)[0].kernel == "torch dense"


def test_only_modules_have_masks_and_a_report() -> None:
    for ask in (dispatch_report, masks):
        with pytest.raises(ModelError, match=r"A model is a torch\.nn\.Module, got str"):
            ask("model")  # type: ignore[operator]
