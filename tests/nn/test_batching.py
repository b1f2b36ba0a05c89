"""Packed layers under `torch.vmap`, without the slow loop that torch falls back on; nested tensors are refused."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.core import KernelError
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor, as_parameter, train_packed_
from sparsewright.solvers import solve_mask

# Float32 products of 64 terms, summed in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LAYOUTS = ("vector", "int8", "int8_weights", "nmg")


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        yield


def packed_linear(layout: str = "vector", bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(64, 36, bias=bias)
    pattern = {"nmg": "3:6:4"}.get(layout, "4x1@50%")
    dtype = torch.int8 if layout.startswith("int8") else torch.float32
    weight = layer.weight.detach()
    packed = pack(weight, solve_mask(weight.abs(), pattern), layout, pattern, dtype)
    layer.weight = as_parameter(SparseTensor(packed))
    return layer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("in_dim, shape", [(0, (4, 64)), (1, (3, 4, 64)), (2, (3, 64, 4))])
def test_vmap_over_inputs_answers_as_one_batch(layout: str, bias: bool, in_dim: int, shape: tuple[int, ...]) -> None:
    layer = packed_linear(layout, bias).requires_grad_(False)
    x = torch.randn(shape)
    torch.testing.assert_close(torch.vmap(layer, in_dims=in_dim)(x), layer(x.movedim(in_dim, 0)), **CLOSE)


def test_vmap_inside_vmap() -> None:
    layer, x = packed_linear().requires_grad_(False), torch.randn(2, 3, 5, 64)
    torch.testing.assert_close(torch.vmap(torch.vmap(layer))(x), layer(x), **CLOSE)


@pytest.mark.parametrize("with_x", [True, False])
def test_vmap_over_the_bias(with_x: bool) -> None:
    packed, bias = packed_linear().weight.packed, torch.randn(4, 36)
    x = torch.randn(4, 5, 64) if with_x else torch.randn(5, 64)
    found = torch.vmap(lambda x, b: sw.linear(x, packed, b), in_dims=(0 if with_x else None, 0))(x, bias)
    torch.testing.assert_close(found, sw.linear(x, packed) + bias[:, None], **CLOSE)


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_pass_through_vmap(trained: bool) -> None:
    layer = packed_linear()
    if trained:
        train_packed_(layer)
    plain = copy.deepcopy(layer)
    x = torch.randn(4, 5, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.vmap(layer)(x).square().sum().backward()
    plain(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **CLOSE)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad, rtol=1e-5, atol=1e-4)
    if trained:
        torch.testing.assert_close(layer.weight.grad.dense(), plain.weight.grad.dense(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_vectorised_jacobian_is_the_weight(layout: str) -> None:
    layer = packed_linear(layout).requires_grad_(False)
    found = torch.autograd.functional.jacobian(layer, torch.randn(64), vectorize=True)
    torch.testing.assert_close(found, layer.weight.dense(), **CLOSE)


def test_values_that_differ_are_multiplied_one_by_one() -> None:
    packed = packed_linear().weight.packed
    tensors, x = packed.tensors, torch.randn(3, 5, 64)
    values = torch.randn(3, *tensors["values"].shape)

    def product(values: Tensor, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.sparsewright.linear(x, values, tensors["index"], tensors["pointers"], None, 36)
        return y

    expected = torch.stack([product(*pair) for pair in zip(values, x)])
    assert torch.equal(torch.vmap(product)(values, x), expected)


def nested(layout: Any, *shapes: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Tensor = torch.nested.nested_tensor([torch.randn(shape) for shape in shapes], layout=layout)
    return made


@pytest.mark.parametrize("trained", [False, True])
def test_nested_tensors_are_refused_with_what_to_do(trained: bool) -> None:
    layer = packed_linear()
    if trained:
        train_packed_(layer)
    convolution = nn.Conv2d(16, 32, 3)
    sw.sparsify_(nn.Sequential(convolution), "2:4x4")
    sw.pack_(nn.Sequential(convolution), force=True)
    x = nested(torch.strided, (3, 64), (5, 64))
    images = nested(torch.strided, (16, 5, 5), (16, 6, 6))
    calls: list[Callable[[], Tensor]] = [
        lambda: layer(x),
        lambda: sw.linear(x, layer.weight.packed),
        lambda: sw.linear(nested(torch.jagged, (3, 64), (5, 64)), layer.weight.packed),
        lambda: convolution(images),
    ]
    for call in calls:
        with pytest.raises(KernelError, match=r"takes x as a plain tensor, got a nested one\. Pass its values"):
            call()


def test_jagged_tensors_run_in_inference() -> None:
    layer = packed_linear().requires_grad_(False)
    x = nested(torch.jagged, (3, 64), (5, 64))
    for found, rows in zip(layer(x).unbind(), x.unbind()):
        torch.testing.assert_close(found, layer(rows), **CLOSE)
