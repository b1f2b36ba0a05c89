"""A layer of plain tensors: one packed weight while they stand, whatever is done to the module."""

import copy

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.core import KernelError, parse_pattern
from sparsewright.layouts import pack
from sparsewright.nn import PackedLinear
from sparsewright.solvers import solve_mask

CASES = [
    ("vector", "2:4x4", torch.float32),
    ("int8", "2:4x4", torch.int8),
    ("nmg", "2:4:2", torch.float32),
    ("int8_weights", "2:4", torch.int8),
]


def packed_layer(layout, pattern, dtype, bias=True):
    torch.manual_seed(5)
    weight = torch.randn(16, 32)
    packed = pack(weight, solve_mask(weight.abs(), parse_pattern(pattern)), layout, pattern, value_dtype=dtype)
    return PackedLinear(packed, torch.randn(16) if bias else None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@pytest.mark.parametrize("cast", ["double", "half", "bfloat16"])
@torch.no_grad()
def test_casts_leave_the_packed_tensors_as_they_are(case, cast):
    layer, x = packed_layer(*case, bias=False), torch.randn(5, 32)
    wanted = layer(x)
    getattr(layer, cast)()
    assert torch.equal(layer(x), wanted)
    # The bias alone follows, and is read in the dtype of x.
    biased = packed_layer(*case)
    wanted = biased(x)
    torch.testing.assert_close(getattr(biased, cast)()(x), wanted, atol=2e-2, rtol=0)
    assert biased.bias.dtype == getattr(torch, cast)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@torch.no_grad()
def test_the_packed_weight_is_made_once_and_again_when_a_tensor_is_replaced(case):
    layer, x = packed_layer(*case), torch.randn(5, 32)
    wanted = layer(x)
    assert layer.packed is layer.packed
    before = layer.packed
    layer.packed_values = layer.packed_values.clone()
    assert layer.packed is not before
    assert torch.equal(layer(x), wanted)
    other = copy.deepcopy(layer)
    assert other.packed is not layer.packed
    assert torch.equal(other(x), wanted)


@torch.no_grad()
def test_damaged_buffers_are_refused_after_loading():
    layer, x = packed_layer("vector", "1:4x4", torch.float32), torch.randn(5, 32)
    layer(x)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["packed_pointers"] *= 100000
    layer.load_state_dict(state)
    with pytest.raises(KernelError, match="does not hold together"):
        layer(x)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@pytest.mark.parametrize(
    ("activation", "behind"),
    [("relu", nn.ReLU()), ("gelu", nn.GELU()), ("gelu_tanh", nn.GELU(approximate="tanh"))],
    ids=["relu", "gelu", "gelu_tanh"],
)
@pytest.mark.parametrize("tokens", [1, 7])
def test_an_activation_takes_the_place_of_the_module_behind(case, activation, behind, tokens):
    plain = packed_layer(*case)
    fused = PackedLinear(plain.packed, plain.bias, activation=activation)
    x = torch.randn(tokens, 32, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), behind(plain(x)), rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (fused(x), behind(plain(x)))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    again = copy.deepcopy(fused)
    assert again.activation == activation
    assert f"activation={activation!r}" in repr(again)


def test_an_unknown_activation_is_refused_when_the_layer_is_made():
    packed = packed_layer(*CASES[0]).packed
    with pytest.raises(KernelError, match=r"fuse relu, gelu and gelu_tanh, got 'glu'\. Did you mean"):
        PackedLinear(packed, activation="glu")


def test_a_wrong_weight_or_bias_is_told_when_the_layer_is_made() -> None:
    packed = sw.pack(torch.randn(8, 16), sw.solve_mask(torch.rand(8, 16), "50%"), "vector", "50%")
    for wrong in (None, torch.randn(8, 16)):
        with pytest.raises(KernelError, match=r"takes a PackedWeight, got .*sw\.pack"):
            PackedLinear(wrong)  # type: ignore[arg-type]
    for bias in ([1.0] * 8, torch.ones(8, dtype=torch.int64), torch.ones(7)):
        with pytest.raises(KernelError, match=r"a floating-point bias of shape \(8,\), got"):
            PackedLinear(packed, bias)  # type: ignore[arg-type]
    assert isinstance(PackedLinear(packed, trainable="values").packed_values, torch.nn.Parameter)


def test_to_dense_gives_dense_values() -> None:
    linear = torch.nn.Linear(16, 8)
    sw.sparsify_(torch.nn.Sequential(linear), "2:4")
    wanted = linear.weight.detach().clone()
    model = torch.nn.Sequential(linear)
    sw.pack_(model, force=True)
    dense = model[0].weight.to_dense()
    assert type(dense) is torch.Tensor
    assert torch.equal(dense, wanted)
