"""Whole models with packed weights under torch.compile, torch.export and AOTInductor answer as they do eagerly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsewright.core import parse_pattern
from sparsewright.layouts import pack
from sparsewright.models import ensure_torchvision_imports
from sparsewright.nn import SparseTensor, as_parameter
from sparsewright.solvers import solve_mask

# Float32; what lies between the packed layers is fused, and so summed in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# Inputs that another order moves over the middle between two of the 127 steps.
ROUNDED = {"rtol": 2e-2, "atol": 2e-2}

VALUES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}


def pack_linears(model: nn.Module, values: str = "fp32", pattern: str = "2:4x4") -> nn.Module:
    """Pack every linear whose shape the pattern fits; the model itself, in evaluation mode."""
    rule = parse_pattern(pattern)
    for module in model.modules():
        if not isinstance(module, nn.Linear) or rule.why_not(tuple(module.weight.shape)):
            continue
        weight = module.weight.detach()
        packed = pack(weight, solve_mask(weight.abs(), rule), pattern=rule, value_dtype=VALUES[values])
        module._parameters["weight"] = as_parameter(SparseTensor(packed))
    return model.eval()


def perceptron(values: str) -> nn.Module:
    torch.manual_seed(0)
    return pack_linears(nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16, bias=False)), values)


def bert() -> nn.Module:
    ensure_torchvision_imports()
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def text_batch(items: int, length: int) -> dict[str, Tensor]:
    ids = torch.arange(items * length).view(items, length) % 99
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def vision_transformer() -> nn.Module:
    ensure_torchvision_imports()
    timm = pytest.importorskip("timm", reason="needs the extra `timm`")
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=10, pretrained=False
    )


def packed_nodes(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if str(node.target).startswith("sparsewright.")]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("values", VALUES)
def test_compile_takes_the_whole_graph_for_any_number_of_tokens(values: str) -> None:
    model = perceptron(values)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (5, 2, 33):
            x = torch.randn(tokens, 64)
            torch.testing.assert_close(compiled(x), model(x), **(ROUNDED if values == "int8" else CLOSE))


@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_compiled_gradients_reach_the_inputs(values: str) -> None:
    model = perceptron(values)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 64, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("values", VALUES)
def test_export_keeps_the_packed_operators_and_tokens_open(values: str, tmp_path: Path) -> None:
    model = perceptron(values)
    shapes = ({0: torch.export.Dim("tokens")},)
    program = torch.export.export(model, (torch.randn(5, 64),), dynamic_shapes=shapes)
    operator = "sparsewright.int8_linear.default" if values == "int8" else "sparsewright.linear.default"
    assert packed_nodes(program) == [operator] * 2
    lowered = program.run_decompositions()
    assert packed_nodes(lowered) == [operator] * 2
    torch.export.save(lowered, tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2")
    with torch.no_grad():
        for tokens in (1, 2, 33):
            x = torch.randn(tokens, 64)
            expected = model(x)
            for runnable in (program, lowered, again):
                assert torch.equal(runnable.module()(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_a_bert_of_transformers_compiles_and_exports(values: str) -> None:
    model = pack_linears(bert(), values)
    close = ROUNDED if values == "int8" else CLOSE
    compiled = torch.compile(lambda **batch: model(**batch).last_hidden_state, fullgraph=True, dynamic=True)
    free = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in text_batch(2, 8)}
    program = torch.export.export(model, (), text_batch(2, 8), dynamic_shapes=free)
    assert len(packed_nodes(program)) == 12
    for items, length in ((2, 8), (3, 17)):
        batch = text_batch(items, length)
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
            torch.testing.assert_close(program.module()(**batch).last_hidden_state, expected, **close)
            torch.testing.assert_close(compiled(**batch), expected, **close)


@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_a_vision_transformer_of_timm_compiles_and_exports(values: str) -> None:
    model = pack_linears(vision_transformer(), values)
    close = ROUNDED if values == "int8" else CLOSE
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("items")},))
    assert len(packed_nodes(program)) == 9
    for items in (2, 5):
        images = torch.randn(items, 3, 32, 32)
        with torch.no_grad():
            expected = model(images)
            torch.testing.assert_close(program.module()(images), expected, **close)
            torch.testing.assert_close(compiled(images), expected, **close)


def mixed() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        pack_linears(nn.Linear(64, 32), "fp32"),
        pack_linears(nn.Linear(32, 32), "fp16"),
        pack_linears(nn.Linear(32, 16, bias=False), "int8"),
    ]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()


@pytest.mark.parametrize("backwards", [False, True])
def test_layers_of_different_layouts_are_exported_together(backwards: bool) -> None:
    model: nn.Module = mixed()
    if backwards:
        model = nn.Sequential(pack_linears(nn.Linear(64, 64), "int8"), *model)
    program = torch.export.export(model, (torch.randn(5, 64),), dynamic_shapes=({0: torch.export.Dim("tokens")},))
    assert len(packed_nodes(program)) == (4 if backwards else 3)
    x = torch.randn(9, 64)
    with torch.no_grad():
        assert torch.equal(program.module()(x), model(x))


@pytest.mark.slow
def test_ahead_of_time_compilation_runs_packed_layers_of_every_layout(tmp_path: Path) -> None:
    model = mixed()
    program = torch.export.export(
        model, (torch.randn(5, 64),), dynamic_shapes=({0: torch.export.Dim("tokens", min=2)},)
    )
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    runner: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(package)
    with torch.no_grad():
        for tokens in (2, 9):
            x = torch.randn(tokens, 64)
            torch.testing.assert_close(runner(x), model(x), **CLOSE)
