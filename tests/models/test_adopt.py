"""Earlier work is taken over: zeros, masks of torch.nn.utils.prune, files of masks."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsewright import nn as sparse_nn
from sparsewright.core import FileError, ModelError, NumericError, parse_pattern
from sparsewright.hardware import pack_
from sparsewright.layouts import recognise
from sparsewright.models import adopt_masks_, layers, sparsify_, strip_masks_
from sparsewright.solvers import solve_mask
from sparsewright.testing.examples import sample_scores

NAMES = ["0", "2"]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64)).eval()


@pytest.mark.parametrize(
    "pattern", ["2:4", "1:4", "3:8", "2:4x4", "2:4x16", "2:4t", "8:16t", "16:32t", "4x1@50%", "50%", "25%", "3:6:4"]
)
def test_the_tightest_rule_of_a_mask_is_recognised(pattern: str) -> None:
    assert str(recognise(solve_mask(sample_scores((96, 96)), pattern))) == pattern


@pytest.mark.parametrize("pattern", ["2:4", "8:16t", "2:4x4"])
def test_a_rule_is_recognised_where_a_few_kept_weights_are_zero_and_where_the_end_cuts_it_off(pattern: str) -> None:
    mask = solve_mask(sample_scores((96, 96)), pattern)
    place = tuple(mask.nonzero()[7])
    mask[place] = False
    assert str(recognise(mask)) == pattern
    assert str(recognise(solve_mask(sample_scores((96, 86)), pattern, edge="at_most"))) == pattern


@pytest.mark.parametrize("pattern", ["2:4", "8:16t", "2:4x4", "50%"])
def test_zeros_of_a_checkpoint_become_plan_and_masks_without_changing_a_weight(pattern: str) -> None:
    model = fresh()
    sparsify_(model, pattern, include=NAMES)
    masks = {name: mask.clone() for name, mask in sparse_nn.masks(model).items()}
    strip_masks_(model)
    with torch.no_grad():
        kept = tuple(masks["0"].nonzero()[5])
        model[0].weight[kept] = 0  # a kept weight that happens to be zero
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = adopt_masks_(model, include=NAMES)
    assert {name: layer.pattern for name, layer in result.layers.items()}["2"] == pattern
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(sparse_nn.masks(model)["2"], masks["2"])
    if pattern == "2:4":
        assert result.layers["0"].pattern == pattern
        assert bool((sparse_nn.masks(model)["0"].unflatten(1, (-1, 4)).sum(-1) == 2).all())
    rows = pack_(model, plan=result.plan, force=True)
    assert [row.packed for row in rows] == [True, True]


def test_live_pruning_of_torch_is_taken_over_and_its_hooks_go() -> None:
    model = fresh()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.random_unstructured(model[2], "weight", amount=0.25)
    x = torch.randn(3, 64)
    expected = model(x)
    masks = {name: model.get_submodule(name).weight_mask.bool() for name in NAMES}
    result = adopt_masks_(model)
    assert {name: layer.pattern for name, layer in result.layers.items()} == {"0": "50%", "2": "75%"}
    assert not prune.is_pruned(model)
    assert "weight_orig" not in dict(model[0].named_parameters())
    assert all(torch.equal(sparse_nn.masks(model)[name], mask) for name, mask in masks.items())
    assert torch.equal(model(x), expected)


def pruned_state() -> tuple[dict[str, Tensor], nn.Module]:
    source = fresh()
    with torch.no_grad():
        source[0].bias.add_(1)
    for module in (source[0], source[2]):
        prune.custom_from_mask(module, "weight", solve_mask(module.weight.abs(), "2:4"))
    return dict(source.state_dict()), source


@pytest.mark.parametrize("form", ["mapping", "safetensors", "npz"])
def test_a_state_dict_of_torchs_pruning_is_loaded_with_its_masks(form: str, tmp_path: Path) -> None:
    state, source = pruned_state()
    given: object = state
    if form == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "p.safetensors")
        given = tmp_path / "p.safetensors"
    if form == "npz":
        np.savez(tmp_path / "p.npz", **{key: value.numpy() for key, value in state.items()})
        given = tmp_path / "p.npz"
    model = fresh()
    result = adopt_masks_(model, given)  # type: ignore[arg-type]
    assert {layer.pattern for layer in result.layers.values()} == {"2:4"}
    x = torch.randn(3, 64)
    assert torch.equal(model(x), source(x))
    pack_(model, plan=result.plan, force=True)
    assert torch.allclose(model(x), source(x), atol=1e-5)


@pytest.mark.parametrize("key", ["0", "0.weight", "0.mask", "0.weight_mask"])
def test_masks_by_layer_name_are_taken_over_whatever_their_dtype(key: str, tmp_path: Path) -> None:
    mask = solve_mask(sample_scores((32, 64)), "2:4t")
    for values in (mask, mask.float(), mask.numpy().astype(np.uint8)):
        model = fresh()
        before = model[0].weight.detach().clone()
        result = adopt_masks_(model, {key: values})
        assert result.layers["0"].pattern == "2:4t"
        assert result.layers["0"].error > 0
        assert torch.equal(model[0].weight.detach(), torch.where(mask, before, 0))
        assert "2" in result.skipped
    np.savez_compressed(tmp_path / "m.npz", **{key: mask.numpy()})
    model = fresh()
    adopt_masks_(model, tmp_path / "m.npz")
    assert torch.equal(sparse_nn.masks(model)["0"], mask)


def test_masks_have_the_shape_of_the_stored_weight() -> None:
    model = tiny_models.tiny_gpt2()
    ref = next(ref for ref in layers(model) if ref.kind == "transposed")
    mask = solve_mask(sample_scores(ref.shape), "2:4")
    result = adopt_masks_(model, {ref.name: mask.T})
    assert result.layers[ref.name].pattern == "2:4"
    found = ref.get_mask()
    assert found is not None
    assert parse_pattern("2:4").check_mask(found) == []


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"nowhere": torch.ones(2, 2)}, "no layer of this model"),
        ({"0": torch.ones(2, 2)}, "weight's shape"),
        ({"0": torch.full((32, 64), 0.5)}, "0 .removed. and 1"),
        ({"0": torch.full((32, 64), torch.nan)}, "0 .removed. and 1"),
        ({"0": torch.zeros(32, 64)}, "keeps nothing"),
        ({"0": object()}, "array of numbers"),
        ({"0.weight_orig": torch.ones(32, 64)}, "needs a weight_mask"),
        (3, "mapping"),
        ({0: torch.ones(32, 64)}, "names of layers"),
        ({"0": torch.ones(32, 64)}, "remove nothing"),
        ({"0.mask": torch.ones(32, 64), "0.weight": torch.eye(32, 64)}, "two masks for 0"),
        (
            {
                "0.weight_orig": torch.ones(32, 64),
                "0.weight_mask": torch.ones(32, 64),
                "2.weight": torch.full((64, 32), 7.0),
            },
            "remove nothing",
        ),
    ],
)
def test_wrong_masks_are_refused_and_leave_the_model_as_it_was(masks: object, message: str) -> None:
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        adopt_masks_(model, masks)  # type: ignore[arg-type]
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_a_dense_model_has_nothing_to_adopt() -> None:
    with pytest.raises(ModelError, match="No layer"):
        adopt_masks_(fresh())


def _npz(path: Path, name: str, payload: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, payload)
    return path


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def _claims(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (_npy(np.array([[object()]], dtype=object)), "masks are numbers"),
        (_claims("(1000000000000, 8)"), "masks are numbers"),
        (bytes(64 << 20), "larger than its layer"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (b"nonsense", "cannot be read"),
    ],
)
def test_hostile_npz_files_are_refused_before_they_take_memory(payload: bytes, message: str, tmp_path: Path) -> None:
    path = _npz(tmp_path / "m.npz", "0.npy", payload)
    with pytest.raises(FileError, match=message):
        adopt_masks_(fresh(), path)


@pytest.mark.parametrize("name", ["m.npz", "m.safetensors"])
def test_damaged_files_missing_ones_and_pickles_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(FileError, match="is no file"):
        adopt_masks_(fresh(), path)
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(FileError, match="cannot be read"):
        adopt_masks_(fresh(), str(path))
    (tmp_path / "m.pt").write_bytes(b"x")
    with pytest.raises(FileError, match=r"\.safetensors and \.npz"):
        adopt_masks_(fresh(), tmp_path / "m.pt")


def test_a_refusal_leaves_torchs_pruning_on() -> None:
    model = fresh()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.custom_from_mask(model[2], "weight", torch.zeros(64, 32))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(3, 64)
    expected = model(x)
    with pytest.raises(ModelError, match="keeps nothing"):
        adopt_masks_(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert prune.is_pruned(model[0])
    assert torch.equal(model(x), expected)
    prune.remove(model[0], "weight")


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("form", ["masks", "state", "live", "zeros"])
def test_a_weight_that_is_no_number_is_named_and_nothing_is_adopted(form: str, kept: bool) -> None:
    model = fresh()
    mask = torch.ones(32, 64)
    mask[:, ::2] = 0
    with torch.no_grad():
        model[0].weight[3, 5 if kept else 4] = float("nan")
    given: object = {"0": mask}
    if form == "state":
        given = {"0.weight_orig": model[0].weight.detach().clone(), "0.weight_mask": mask}
        model = fresh()
    if form in ("live", "zeros"):
        given = None
        prune.custom_from_mask(model[0], "weight", mask)
        if form == "zeros":
            prune.remove(model[0], "weight")
    keys = list(model.state_dict())
    with pytest.raises(NumericError, match=r"0.*\[3, [45]\] is nan"):
        adopt_masks_(model, given)  # type: ignore[arg-type]
    assert list(model.state_dict()) == keys


def test_a_mask_in_a_sparse_layout_is_taken() -> None:
    mask = solve_mask(sample_scores((32, 64)), "2:4")
    model = fresh()
    adopt_masks_(model, {"0": mask.float().to_sparse()})
    assert torch.equal(sparse_nn.masks(model)["0"], mask)


def test_a_pruned_bias_becomes_plain_too() -> None:
    model = fresh()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[0], "bias", amount=0.5)
    bias = model[0].bias.detach().clone()
    adopt_masks_(model)
    assert not prune.is_pruned(model)
    assert torch.equal(model[0].bias.detach(), bias)


def test_what_has_no_masks_to_give_is_told() -> None:
    with pytest.raises(ModelError, match=r"torch\.nn\.Module"):
        adopt_masks_(3)  # type: ignore[arg-type]
    model = fresh()
    sparsify_(model, "2:4", include=NAMES)
    pack_(model, force=True)
    with pytest.raises(ModelError, match="is packed"):
        adopt_masks_(model)
