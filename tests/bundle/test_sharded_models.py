"""Weights that FSDP2 has sharded: every step that needs them whole says so, and the state gathers into one that is."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparsewright import Budget, export_onnx, load, mark_, masks, measure, pack_, save, search, sparsify_
from sparsewright.core import ModelError
from sparsewright.hardware import build_rivals, time_model
from sparsewright.models import layers

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    if dist.is_initialized():
        pytest.skip("another group is open in this process")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_model(sparse: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    if sparse:
        sparsify_(model, "2:4x4")
    return model


def sharded(model: nn.Sequential) -> nn.Sequential:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh)
    return model


X = torch.randn(5, 64)
WHOLE: dict[str, Callable[[nn.Module, Path], object]] = {
    "sparsify_": lambda model, folder: sparsify_(model, "2:4"),
    "sparsify_ with data": lambda model, folder: sparsify_(model, "2:4", method="wanda", data=[torch.randn(8, 64)]),
    "pack_": lambda model, folder: pack_(model, force=True),
    "save": lambda model, folder: save(model, folder / "model.safetensors"),
    "measure": lambda model, folder: measure(model, X),
    "measure as the dense model": lambda model, folder: measure(make_model(), X, dense=model),
    "search": lambda model, folder: search(model, [X], budget=Budget(speedup=1.1)),
    "time_model": lambda model, folder: time_model(model, X, {"0": model[0]}, {"0": (64, 64)}),
    "build_rivals": lambda model, folder: build_rivals(model, X, folder=folder),
    "mark_ weights": lambda model, folder: mark_(model, weights={"0": "2:4"}),
    "mark_ gradients": lambda model, folder: mark_(model, weight_gradients={"0": "2:4"}),
    "get_weight": lambda model, folder: layers(model)[0].get_weight(),
    "set_weight": lambda model, folder: layers(model)[0].set_weight(torch.zeros(64, 64)),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("step", WHOLE)
def test_what_needs_whole_weights_refuses_sharded_ones(tmp_path: Path, step: str) -> None:
    model = sharded(make_model())
    before = {name: value.full_tensor().clone() for name, value in model.named_parameters()}
    with pytest.raises(
        ModelError, match=r"but 0(\.weight)? is a sharded DTensor \(fully_shard\)\. Do it before fully_sh"
    ):
        WHOLE[step](model, tmp_path)
    assert all(torch.equal(value.full_tensor(), before[name]) for name, value in model.named_parameters())
    assert not list(tmp_path.glob("model*"))
    model(X).sum().backward()  # it works as before


@pytest.mark.usefixtures("group")
def test_a_dense_sharded_model_is_neither_saved_nor_exported_nor_filled(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="ONNX files need the extra `onnx`")
    model = sharded(make_model(sparse=False))
    with pytest.raises(ModelError, match=r"0\.weight is a sharded DTensor"):
        save(model, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"0\.weight is a sharded DTensor"):
        export_onnx(model, tmp_path / "model.onnx", torch.randn(5, 64), check=False)
    save(make_model(), tmp_path / "whole.safetensors")
    with pytest.raises(ModelError, match=r"0\.weight is a sharded DTensor"):
        load(tmp_path / "whole.safetensors", model)


@pytest.mark.usefixtures("group")
def test_the_gathered_state_packs(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = sharded(make_model())
    assert list(masks(model)) == ["0", "2"]
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    whole = make_model()
    whole.load_state_dict(state)
    assert [row.packed for row in pack_(whole, force=True)] == [True, True]
    x = torch.randn(5, 64)
    with torch.no_grad():
        torch.testing.assert_close(whole(x), model(x), rtol=1e-5, atol=1e-5)
