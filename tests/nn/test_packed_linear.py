"""A layer of plain tensors: one packed weight while they stand, whatever is done to the module."""

import copy

import pytest
import torch
from torch import nn

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
    biased = getattr(packed_layer(*case), cast)()
    with pytest.raises(KernelError, match="bias of torch"):
        biased(x)
    assert torch.isfinite(biased.float()(x)).all()


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
