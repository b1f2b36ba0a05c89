"""What differentiates in ways that packed layers do not know is told so, never answered with zeros."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import sparsewright as sw
from sparsewright.core import KernelError
from sparsewright.nn import SparseTensor, as_parameter
from sparsewright.training import keep_masks_


def packed_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    sw.sparsify_(model, "2:4x4", method="magnitude")
    sw.pack_(model, force=True)
    return model


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_forward_mode_and_function_transforms_are_refused(trained):
    model, x = packed_model(), torch.randn(3, 16)
    model(x)
    if trained:
        sw.train_packed_(model)
    else:
        model.requires_grad_(False)
    with pytest.raises(KernelError, match="differentiate under"):
        torch.func.jvp(model, (x,), (torch.ones_like(x),))
    with pytest.raises(KernelError, match="differentiate under"):
        torch.func.grad(lambda z: model(z).sum())(x)
    with pytest.raises(KernelError, match="differentiate under"):
        torch.vmap(torch.func.grad(lambda z: model(z).sum()))(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(KernelError, match="forward-mode"):
            model(dual)
        assert torch.equal(model(x), model(x))


def test_convolutions_refuse_alike():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1)).requires_grad_(False)
    sw.sparsify_(model, "4x1@25%", method="magnitude")
    sw.pack_(model, force=True)
    x = torch.randn(1, 8, 6, 6)
    with pytest.raises(KernelError, match="differentiate under"):
        torch.func.jvp(model, (x,), (torch.ones_like(x),))


def test_a_weight_on_the_meta_device_gives_no_answer():
    model = packed_model().to("meta")
    model[0].bias = nn.Parameter(torch.zeros(32))
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(KernelError, match="meta"):
            model[0](torch.randn(3, 16))


@pytest.mark.parametrize("layout", ["vector", "int8", "int8_weights", "nmg"])
def test_a_model_on_the_meta_device_tells_shapes_and_dtypes(layout):
    pattern = "3:6:4" if layout == "nmg" else "2:4x4"
    weight = torch.randn(36, 16)
    dtype = torch.int8 if layout.startswith("int8") else torch.float32
    here = nn.Linear(16, 36)
    here.weight = as_parameter(
        SparseTensor(sw.pack(weight, sw.solve_mask(weight.abs(), pattern), layout, pattern, dtype))
    )
    layer = copy.deepcopy(copy.deepcopy(here).to("meta"))
    x = torch.randn(2, 3, 16, device="meta", requires_grad=True)
    y = layer(x)
    assert (y.shape, y.device.type, y.dtype) == ((2, 3, 36), "meta", torch.float32)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert sw.linear(x, layer.weight.packed).shape == (2, 3, 36)
    assert layer.weight.dense().shape == (36, 16)
    assert sw.masks(layer)[""].is_meta
    if layout == "int8_weights":
        with pytest.raises(KernelError, match=r'x is on the meta device.*the packed weight is on cpu.*\.to\("meta"\)'):
            sw.linear(x, here.weight.packed)
    else:
        assert sw.linear(x, here.weight.packed).shape == (2, 3, 36)


def test_room_on_another_device_is_room_for_a_state_dict():
    model, x = packed_model(), torch.randn(3, 16)
    wanted = model(x)
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    assert empty[0].weight.device.type == "cpu"
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(x), wanted)
    assert torch.empty_like(model[0].weight, device="meta").device.type == "meta"


def test_data_takes_over_packed_weights_only():
    model, other, x = packed_model(), packed_model(), torch.randn(3, 16)
    sw.train_packed_(other)
    with torch.no_grad():
        other[0].weight.mul_(2.0)
    for mine, theirs in zip(model.parameters(), other.parameters()):
        mine.data = theirs.data
    assert torch.equal(model(x), other(x))
    with pytest.raises(KernelError, match="data"):
        model[0].weight.data = torch.zeros(32, 16)
    with pytest.raises(KernelError, match="own shape"):
        model[0].weight.data = model[2].weight.data


def test_parameters_that_join_an_optimizer_later_keep_their_masks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    sw.sparsify_(model, "2:4x4", method="magnitude")
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=0.1)
    with keep_masks_(model, optimizer) as kept:
        assert len(kept.weights) == 1
        optimizer.add_param_group({"params": list(model[1].parameters())})
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 16)).square().sum().backward()
            optimizer.step()
            for layer in model:
                assert not layer.weight[~layer.weight_mask].any()
        assert len(kept.weights) == 2


def test_wrong_kinds_of_arguments_are_told_in_one_sentence():
    model = packed_model()
    packed, x = model[0].weight.packed, torch.randn(3, 16)
    for call in (
        lambda: keep_masks_("m", None),
        lambda: keep_masks_(nn.Linear(2, 2), "sgd"),
        lambda: sw.train_packed_("m"),
        lambda: sw.mark_(model, weights=["0"]),
        lambda: sw.linear(x, packed, activation=["relu"]),
        lambda: sw.linear(x, packed, on_missing="foo"),
        lambda: sw.pack("w", "m", pattern="2:4"),
        lambda: sw.why_not(None),
        lambda: sw.why_not(model[0].weight),
        lambda: sw.pack_(model, plan="2:4"),
        lambda: sw.pack_(model, plan={"0": "2:4"}),
        lambda: sw.measure(model, x, rivals=5, dense=nn.Linear(16, 16)),
        lambda: sw.search(nn.Linear(16, 16), [x], budget=None),
        lambda: sw.solve_mask("w", "2:4"),
    ):
        with pytest.raises(sw.SparsewrightError):
            call()


def test_a_model_whose_dropped_weights_were_filled_is_not_packed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32))
    sw.sparsify_(model, "2:4x4", method="magnitude")
    with torch.no_grad():
        model[0].weight.add_(0.1)
    before = model[0].weight.clone()
    with pytest.raises(sw.SparsewrightError, match="not zero any more"):
        sw.pack_(model, force=True)
    assert torch.equal(model[0].weight, before)
