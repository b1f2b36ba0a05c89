"""ONNX files with packed layers: any runtime loads them, they answer as torch does, and they are small."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bundle_models import TwoLayers, mask_layer
from torch import Tensor, nn

from sparsewright.bundle import export_onnx, onnx_functions
from sparsewright.bundle import onnx as exporter
from sparsewright.core import (
    BundleError,
    FileError,
    KernelError,
    MissingPackageError,
    ModelError,
    ValueType,
    parse_pattern,
)
from sparsewright.hardware import pack_
from sparsewright.hardware.onnx_rival import open_session
from sparsewright.layouts import layouts, pack
from sparsewright.models import ensure_torchvision_imports, sparsify_
from sparsewright.nn import SparseTensor, as_parameter, train_packed_
from sparsewright.solvers import solve_mask

onnx = pytest.importorskip("onnx", reason="ONNX files need the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX files are run with onnxruntime")
pytest.importorskip("onnxscript", reason="ONNX files need the extra `onnx`")

# Float32 products of up to 128 terms, summed in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Block(nn.Module):
    """Two packed linears, the second without bias."""

    def __init__(self, text: str, out: int, in_: int) -> None:
        super().__init__()
        self.up, self.down = packed_linear(text, out, in_), packed_linear(text, in_, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def packed_linear(text: str, out: int, in_: int, bias: bool = True, layout: str = "auto") -> nn.Linear:
    """A linear with a pattern and a value type, such as `1:4x4 int8`."""
    torch.manual_seed(out * in_)
    layer = nn.Linear(in_, out, bias=bias)
    pattern, _, values = text.partition(" ")
    dtype = {"": torch.float32, "fp16": torch.float16, "int8": torch.int8}[values]
    weight = layer.weight.detach()
    mask = torch.ones_like(weight, dtype=torch.bool) if pattern == "dense" else solve_mask(weight.abs(), pattern)
    packed = pack(weight, mask, layout, parse_pattern(pattern), dtype)
    layer._parameters["weight"] = as_parameter(SparseTensor(packed))
    return layer


def packed_convolution(layer: nn.Conv1d | nn.Conv2d, text: str) -> nn.Module:
    """The same convolution with a packed weight."""
    torch.manual_seed(1)
    weight = layer.weight.detach()
    matrix, pattern = torch.randn(weight.flatten(1).shape), parse_pattern(text)
    packed = pack(matrix, solve_mask(matrix.abs(), pattern), "vector", pattern)
    layer._parameters["weight"] = as_parameter(SparseTensor(packed, view_shape=tuple(weight.shape)))
    return layer


def answers(path: Path, *inputs: Tensor) -> list[Tensor]:
    """What onnxruntime says."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "text, out, in_, operator",
    [
        ("2:4x4", 48, 64, "VectorLinear"),
        ("2:4", 20, 520, "VectorLinear"),
        ("10%", 50, 160, "VectorLinear"),
        ("1:8x4 fp16", 36, 64, "VectorLinear"),
        ("16x1@10% int8", 40, 300, "Int8Linear"),
        ("dense int8", 20, 35, "Int8DenseLinear"),
        ("3:6:4", 36, 80, "NmgLinear"),
        # Blocks and chunks that are not full.
        ("3:6:4", 37, 83, "NmgLinear"),
        ("1:4:4 fp16", 50, 100, "NmgLinear"),
    ],
)
def test_packed_layers_answer_as_in_torch_for_any_number_of_tokens(
    tmp_path: Path, text: str, out: int, in_: int, operator: str, bias: bool
) -> None:
    model = packed_linear(text, out, in_, bias)
    told = export_onnx(model, tmp_path / "model.onnx", torch.randn(5, in_))
    assert told.packed_layers == {operator: 1}
    assert told.error is not None
    onnx.checker.check_model(onnx.load(told.path), full_check=True)
    for tokens in (1, 2, 7, 33):
        x = torch.randn(tokens, in_)
        with torch.no_grad():
            torch.testing.assert_close(answers(told.path, x)[0], model(x), **CLOSE)


def test_a_second_runtime_reads_the_function_bodies(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    for text in ("2:4x4", "1:4x4 int8", "dense int8", "3:6:4"):
        model = Block(text, 32, 64)
        told = export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64))
        x = torch.randn(3, 64)
        (found,) = ReferenceEvaluator(onnx.load(told.path)).run(None, {"input": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), **CLOSE)


def test_items_and_tokens_stay_open(tmp_path: Path) -> None:
    model = Block("2:4x4", 32, 64)
    told = export_onnx(model, tmp_path / "model.onnx", torch.randn(1, 5, 64))
    for shape in ((1, 1, 64), (1, 9, 64), (4, 3, 64), (0, 3, 64)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(answers(told.path, x)[0], model(x), **CLOSE)


def test_sizes_can_be_fixed(tmp_path: Path) -> None:
    model = Block("2:4x4", 32, 64)
    told = export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64), dynamic_shapes=None)
    (entry,) = onnx.load(told.path).graph.input
    assert [size.dim_value for size in entry.type.tensor_type.shape.dim] == [5, 64]


@pytest.mark.parametrize("text, share", [("2:4x4", 0.55), ("10%", 0.15), ("1:4x4 int8", 0.11)])
def test_the_file_is_smaller_than_the_dense_one(tmp_path: Path, text: str, share: float) -> None:
    model = Block(text, 768, 256)
    told = export_onnx(model, tmp_path / "packed.onnx", torch.randn(5, 256), check=False)
    dense = copy.deepcopy(model)
    for layer in (dense.up, dense.down):
        layer.weight = nn.Parameter(layer.weight.dense())
    plain = export_onnx(dense, tmp_path / "dense.onnx", torch.randn(5, 256), check=False)
    assert plain.packed_layers == {}
    assert told.size_bytes == told.path.stat().st_size
    assert told.size_bytes < share * plain.size_bytes
    assert told.dense_weight_bytes == 2 * 768 * 256 * 4


def test_runtimes_that_fold_constants_make_the_dense_weight_once(tmp_path: Path) -> None:
    told = export_onnx(Block("2:4x4", 32, 64), tmp_path / "model.onnx", torch.randn(5, 64))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(str(told.path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node]
    assert sorted(set(kinds)) == ["Gemm", "Relu", "Reshape"]


def test_planes_are_named_after_their_layers_and_no_trace_of_sources_is_left(tmp_path: Path) -> None:
    told = export_onnx(Block("2:4x4", 32, 64), tmp_path / "model.onnx", torch.randn(5, 64))
    graph = onnx.load(told.path).graph
    names = {entry.name for entry in graph.initializer}
    assert {"up.weight.values", "up.weight.index", "up.weight.pointers", "up.bias", "down.weight.values"} <= names
    assert not [node.name for node in graph.node if node.metadata_props or node.doc_string]
    assert str(Path(__file__).parent).encode() not in told.path.read_bytes()


def test_a_tied_packed_weight_is_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(packed_linear("2:4x4", 64, 64), nn.ReLU(), packed_linear("2:4x4", 64, 64))
    separate = export_onnx(model, tmp_path / "separate.onnx", torch.randn(5, 64))
    model[2].weight = model[0].weight
    tied = export_onnx(model, tmp_path / "tied.onnx", torch.randn(5, 64))
    assert tied.packed_layers == {"VectorLinear": 2}
    assert tied.size_bytes < 0.6 * separate.size_bytes
    assert tied.dense_weight_bytes == 64 * 64 * 4


def test_packed_masked_and_dense_layers_go_together(make_model: Callable[..., TwoLayers], tmp_path: Path) -> None:
    model = make_model(second=None)
    mask_layer(model.second, "2:4")
    model.train()
    tokens = torch.randint(0, 40, (6,))
    told = export_onnx(model, tmp_path / "model.onnx", tokens)
    assert model.training
    assert told.packed_layers == {"VectorLinear": 1}
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(answers(told.path, tokens)[0], model(tokens), **CLOSE)


def test_the_masked_layout_is_written_as_the_dense_matrix_it_is(tmp_path: Path) -> None:
    model = packed_linear("2:4", 32, 64, layout="masked")
    told = export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64))
    assert told.packed_layers == {}
    assert told.size_bytes > 32 * 64 * 4


@pytest.mark.slow
def test_a_transformer_keeps_its_names_of_inputs_and_outputs(tmp_path: Path) -> None:
    ensure_torchvision_imports()
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config).eval()
    for layer in model.encoder.layer:
        for linear in (layer.attention.self.query, layer.intermediate.dense, layer.output.dense):
            pattern = parse_pattern("2:4x4")
            mask = solve_mask(linear.weight.detach().abs(), pattern)
            packed = pack(linear.weight.detach(), mask, pattern=pattern)
            linear._parameters["weight"] = as_parameter(SparseTensor(packed))

    def batch(items: int, length: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 99, (items, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    told = export_onnx(model, tmp_path / "bert.onnx", batch(2, 16))
    assert told.packed_layers == {"VectorLinear": 6}
    assert told.inputs == ("input_ids", "attention_mask")
    assert told.outputs == ("last_hidden_state", "pooler_output")
    other = batch(3, 9)
    other["attention_mask"][1, 5:] = 0
    found = answers(told.path, *other.values())
    with torch.no_grad():
        expected = model(**other)
    torch.testing.assert_close(found[0], expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(16, 32, 3, padding=1), (2, 16, 9, 11)),
        (nn.Conv2d(16, 20, (3, 2), stride=2, dilation=(2, 1), bias=False), (2, 16, 9, 11)),
        (nn.Conv2d(16, 32, 4, padding="same", groups=2), (2, 16, 9, 11)),
        (nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect"), (2, 16, 9, 11)),
        (nn.Conv1d(16, 32, 3, padding=1), (2, 16, 30)),
    ],
    ids=str,
)
def test_packed_convolutions_answer_as_in_torch(
    tmp_path: Path, layer: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...]
) -> None:
    model = packed_convolution(layer, "2:4x4")
    told = export_onnx(model, tmp_path / "model.onnx", torch.randn(shape))
    assert told.packed_layers == {"VectorConv": 1}
    onnx.checker.check_model(onnx.load(told.path), full_check=True)
    x = torch.randn(3, *shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(answers(told.path, x)[0], model(x), rtol=1e-5, atol=2e-5)


def test_packed_weights_that_train_are_written_as_they_are_and_train_on(tmp_path: Path) -> None:
    model = Block("2:4x4", 32, 64)
    assert train_packed_(model) == ["up.weight", "down.weight"]
    model(torch.randn(8, 64)).square().sum().backward()
    gradient = model.up.weight.grad
    told = export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64))
    assert told.packed_layers == {"VectorLinear": 2}
    assert model.up.weight.requires_grad
    assert model.down.weight.requires_grad
    assert model.up.weight.grad is gradient
    x = torch.randn(7, 64)
    with torch.no_grad():
        torch.testing.assert_close(answers(told.path, x)[0], model(x), **CLOSE)


@pytest.mark.parametrize("text, layout", [("2:4", "bitmask"), ("2:4 fp16", "semi_structured")])
def test_a_layout_without_a_form_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, text: str, layout: str
) -> None:
    model = nn.Sequential(packed_linear(text, 32, 64, layout=layout))
    with pytest.raises(
        KernelError, match=rf"^0 is packed in the layout '{layout}', which has no form in ONNX\. Unpack"
    ):
        export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64))
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_an_onnx_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "translations", dict)
    with pytest.raises(KernelError, match=r"sparsewright\.linear\.default has no form in ONNX.*leave it dense"):
        export_onnx(packed_linear("2:4x4", 32, 64), tmp_path / "model.onnx", torch.randn(5, 64))


def test_a_file_that_answers_otherwise_never_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = onnx_functions.VECTOR
    operator = replace(right, body=right.body.replace("inputs = Identity (x)", "inputs = Neg (x)"))
    monkeypatch.setattr(exporter, "OPERATORS", {"VectorLinear": operator})
    path = tmp_path / "model.onnx"
    path.write_text("before")
    with pytest.raises(BundleError, match=r"differs from torch's by .* of its largest value"):
        export_onnx(packed_linear("2:4x4", 32, 64), path, torch.randn(5, 64))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_never_counts_as_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, path = packed_linear("2:4x4", 32, 64), tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="must be finite, but torch's 'output' holds NaN or infinity"):
        export_onnx(layer, path, torch.full((5, 64), torch.nan))
    right = onnx_functions.VECTOR
    operator = replace(right, body=right.body.replace("inputs = Identity (x)", "inputs = Log (x)"))
    monkeypatch.setattr(exporter, "OPERATORS", {"VectorLinear": operator})
    with pytest.raises(BundleError, match="differs from torch's by nan"):
        export_onnx(layer, path, -torch.rand(5, 64) - 1)
    assert not path.exists()


def test_mistakes_are_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_linear("2:4x4", 32, 64)

    class Unbounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    with pytest.raises(ModelError, match="torch cannot export Unbounded"):
        export_onnx(Unbounded(), tmp_path / "model.onnx", torch.randn(5, 64))
    with pytest.raises(ModelError, match="answers without a tensor"):
        export_onnx(Silent(), tmp_path / "model.onnx", torch.randn(5, 64))
    with pytest.raises(FileError):
        export_onnx(model, tmp_path, torch.randn(5, 64))
    monkeypatch.setattr(exporter, "_MOST_BYTES", 1000)
    with pytest.raises(BundleError, match=r"at most 2 GiB, this model needs [\d,]+ bytes"):
        export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64))
    monkeypatch.setattr(exporter, "find_spec", lambda package: None)
    with pytest.raises(MissingPackageError, match=r"pip install sparsewright\[onnx\]"):
        export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64))
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_layouts_says_what_every_layout_becomes(tmp_path: Path) -> None:
    """A new layout joins here by an operator of its own, or by running through one of these."""
    texts = {
        "int8": "16x1@50% int8",
        "int8_weights": "16x1@50% int8",
        "semi_structured": "2:4 fp16",
        "nmg": "3:6:4",
        "bitmask": "2:4",
    }
    assert set(onnx_functions.LAYOUTS) <= set(layouts.names())
    for name in layouts.names():
        layer = packed_linear(texts.get(name, "16x1@50%"), 32, 96, layout=name)
        if name not in onnx_functions.LAYOUTS:
            with pytest.raises(KernelError, match="has no form in ONNX"):
                export_onnx(layer, tmp_path / "m.onnx", torch.randn(5, 96))
            continue
        written = export_onnx(layer, tmp_path / "m.onnx", torch.randn(5, 96))
        assert list(written.packed_layers) == [operator for operator in [onnx_functions.LAYOUTS[name]] if operator]


def test_int8_weights_under_exact_inputs_answer_alike(tmp_path: Path) -> None:
    layer = packed_linear("2:4 int8", 24, 64)
    written = export_onnx(layer, tmp_path / "m.onnx", torch.randn(5, 64))
    assert written.error is not None
    assert written.error < 1e-5


@pytest.mark.parametrize("value_dtype", ["fp32", "int8"])
def test_a_model_in_float16_is_checked_by_its_own_precision_and_one_in_bfloat16_not_here(
    tmp_path: Path, value_dtype: ValueType
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32, bias=False))
    sparsify_(model, "4x1@50%")
    pack_(model, force=True, value_dtype=value_dtype)
    x = torch.randn(5, 64)
    told = export_onnx(copy.deepcopy(model).half(), tmp_path / "half.onnx", x.half())
    assert told.error is not None
    assert 0 < told.error < 1e-2
    coarse = copy.deepcopy(model).bfloat16()
    with pytest.raises(ModelError, match=r"no bfloat16 kernels.*after `\.float\(\)`.*or with `check=False`"):
        export_onnx(coarse, tmp_path / "coarse.onnx", x.bfloat16())
    assert not (tmp_path / "coarse.onnx").exists()
    assert export_onnx(coarse, tmp_path / "coarse.onnx", x.bfloat16(), check=False).error is None
    assert export_onnx(coarse.float(), tmp_path / "back.onnx", x).error is not None


@pytest.mark.parametrize("tokens", [1, 2])
def test_one_token_is_rounded_in_onnx_no_more_than_here(tmp_path: Path, tokens: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    sparsify_(model, "4x1@50%")
    pack_(model, force=True, value_dtype="int8")
    x = torch.randn(5, 64)
    export_onnx(model, tmp_path / "model.onnx", x)
    (found,) = open_session(tmp_path / "model.onnx").run(None, {"input": x[:tokens].numpy()})
    exact = x[:tokens] @ model[0].weight.dense().T + model[0].bias
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x[:tokens]), rtol=1e-5, atol=1e-5)
    error = (torch.from_numpy(found) - exact).abs().max()
    assert error < 1e-5 if tokens == 1 else error > 1e-4
