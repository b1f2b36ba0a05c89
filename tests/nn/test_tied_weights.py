"""A packed weight that two modules share stays one weight through torch's own files."""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsewright.bundle import load, save
from sparsewright.core import BundleError
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor, allow_loading, as_parameter, restore


def tied_model(packed: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    if packed:
        weight = torch.randn(64, 64)
        mask = (torch.arange(64) % 4 < 2).expand(64, 64)
        model[0].weight = as_parameter(SparseTensor(pack(weight, mask, pattern="2:4x4")))
    model[2].weight = model[0].weight
    return model


def written(model: nn.Module) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("weights_only", [True, False])
def test_both_names_of_a_state_dict_load_as_one_tensor(weights_only: bool) -> None:
    allow_loading()
    model = tied_model()
    stream = written(model)
    untied = copy.deepcopy(model)
    untied[2].weight = copy.deepcopy(model[0].weight)
    assert len(stream.getvalue()) < 0.7 * len(written(untied).getvalue())
    state = torch.load(stream, weights_only=weights_only)
    assert state["0.weight"] is state["2.weight"]
    assert torch.equal(state["0.weight"], model[0].weight.detach())
    apart = torch.load(written(untied), weights_only=weights_only)
    assert apart["0.weight"].packed is not apart["2.weight"].packed


def test_two_loads_of_one_file_share_nothing() -> None:
    allow_loading()
    stream = written(tied_model())
    first = torch.load(stream, weights_only=True)
    stream.seek(0)
    second = torch.load(stream, weights_only=True)
    first["0.weight"].packed.tensors["values"].zero_()
    assert not torch.equal(first["0.weight"], second["0.weight"])


def test_loading_by_copy_keeps_the_parameter_of_both() -> None:
    allow_loading()
    model, other = tied_model(), tied_model(seed=1)
    other.load_state_dict(torch.load(written(model), weights_only=True))
    assert other[0].weight is other[2].weight
    x = torch.randn(5, 64)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("packed", [True, False])
def test_loading_by_assignment_shares_the_values_as_in_torch(tmp_path: Path, packed: bool) -> None:
    allow_loading()
    model, other = tied_model(), tied_model(packed, seed=1)
    other.load_state_dict(torch.load(written(model), weights_only=True), assign=True)
    # torch makes a parameter of its own for each name, around one memory.
    assert other[0].weight.packed is other[2].weight.packed
    x = torch.randn(5, 64)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    assert torch.load(written(other), weights_only=True)["0.weight"].packed.shape == (64, 64)
    save(other, tmp_path / "tied.safetensors")
    loaded = load(tmp_path / "tied.safetensors", tied_model(packed=False))
    assert loaded[0].weight is loaded[2].weight


def test_a_shallow_copy_shares_the_packed_weight() -> None:
    weight = tied_model()[0].weight
    copied = copy.copy(weight)
    assert copied is not weight
    assert copied.packed is weight.packed


def test_files_from_before_ties_were_kept_are_read() -> None:
    weight = tied_model()[0].weight
    _, (stored, *seen) = weight.__reduce_ex__(2)
    _, parts = stored.__reduce__()
    assert torch.equal(restore(*parts, *seen), weight.detach())


def test_a_tensor_around_anything_else_is_refused() -> None:
    function, parts = tied_model()[0].weight.__reduce_ex__(2)
    with pytest.raises(BundleError, match="holds a packed weight, got dict"):
        function({}, *parts[1:])
    with pytest.raises(BundleError, match="cannot be seen as"):
        function(*parts[:-1], (3, 3))
