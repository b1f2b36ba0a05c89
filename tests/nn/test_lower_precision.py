"""A module that was moved to a 16-bit dtype takes and gives that dtype, computed in float32 and rounded once."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsewright.core import KernelError
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor, as_parameter

LOWER = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def layer(values: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(64, 32)
    mask = (torch.arange(64) % 4 < 2).expand(32, 64)
    made.weight = as_parameter(SparseTensor(pack(made.weight.detach(), mask, pattern="2:4x4", value_dtype=values)))
    return made


@LOWER
@pytest.mark.parametrize("shape", [(64,), (1, 64), (5, 64), (2, 3, 64), (0, 64)])
def test_the_result_is_rounded_once(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    moved = layer().to(dtype)
    x = torch.randn(shape).to(dtype)
    exact = F.linear(x.double(), moved.weight.dense().double(), moved.bias.double())
    with torch.no_grad():
        result = moved(x)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def convolution(dims: int) -> nn.Conv1d | nn.Conv2d:
    torch.manual_seed(0)
    made = {1: nn.Conv1d, 2: nn.Conv2d}[dims](16, 32, 3, stride=2, padding=1)
    matrix = made.weight.detach().flatten(1)
    mask = (torch.arange(matrix.shape[1]) % 4 < 2).expand(matrix.shape)
    packed = pack(matrix, mask, "vector", "2:4x4")
    made.weight = as_parameter(SparseTensor(packed, view_shape=tuple(made.weight.shape)))
    return made


@LOWER
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_convolutions_round_once_too(dtype: torch.dtype, dims: int, batch: tuple[int, ...]) -> None:
    moved = convolution(dims).to(dtype)
    x = torch.randn(*batch, 16, *[9] * dims).to(dtype).requires_grad_()
    run = {1: F.conv1d, 2: F.conv2d}[dims]
    exact = run(x.double(), moved.weight.dense().double(), moved.bias.double(), 2, 1)
    result = moved(x)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == moved.bias.grad.dtype == dtype
    (of_x,) = torch.autograd.grad(exact.sum(), x)
    torch.testing.assert_close(x.grad, of_x, rtol=2e-2, atol=2e-2)


@LOWER
def test_a_convolution_keeps_channels_last(dtype: torch.dtype) -> None:
    moved = convolution(2).to(dtype)
    x = torch.randn(2, 16, 9, 9).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        result = moved(x)
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result, moved(x.contiguous()), rtol=torch.finfo(dtype).eps, atol=1e-5)


@LOWER
def test_int8_values_keep_their_scales(dtype: torch.dtype) -> None:
    single = layer(torch.int8)
    moved = copy.deepcopy(single).to(dtype)
    x = torch.randn(6, 64).to(dtype)
    single.bias.data.copy_(moved.bias.float())
    with torch.no_grad():
        assert torch.equal(moved(x), single(x.float()).to(dtype))


@LOWER
def test_gradients_reach_x_and_bias_in_their_dtype(dtype: torch.dtype) -> None:
    moved = layer().to(dtype)
    x = torch.randn(4, 64).to(dtype).requires_grad_()
    moved(x).sum().backward()
    assert x.grad is not None
    assert moved.bias.grad is not None
    assert x.grad.dtype == moved.bias.grad.dtype == dtype
    torch.testing.assert_close(x.grad[0], moved.weight.dense().float().sum(0).to(dtype), rtol=2e-2, atol=2e-2)


def test_bfloat16_values_are_widened_once_and_forgotten_with_their_weight() -> None:
    from sparsewright.nn.lower_precision import _widened

    moved = layer().bfloat16()
    held = len(_widened)
    with torch.no_grad():
        moved(torch.randn(2, 64).bfloat16())
        first = _widened[moved.weight.packed]
        moved(torch.randn(3, 64).bfloat16())
    assert _widened[moved.weight.packed] is first
    assert len(_widened) == held + 1
    del moved, first
    assert len(_widened) == held


def test_bfloat16_values_that_were_written_to_are_widened_anew() -> None:
    moved, other = layer().bfloat16(), layer()
    other.weight.packed.tensors["values"].mul_(3)
    other.bfloat16()
    x = torch.randn(3, 64).bfloat16()
    with torch.no_grad():
        assert not torch.equal(moved(x), other(x))
        # In place: both keep the same places.
        moved.load_state_dict(other.state_dict())
        assert torch.equal(moved(x), other(x))
        tripled = moved(x) - moved.bias
        moved.weight.mul_(2)
        torch.testing.assert_close(moved(x) - moved.bias, 2 * tripled, rtol=2e-2, atol=2e-2)
        torch._foreach_mul_([moved.weight], 0.5)
        assert torch.equal(moved(x), other(x))
        moved.weight.packed.tensors["values"].zero_()
        assert torch.equal(moved(x), moved.bias.expand(3, 32))


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_moved_modules_run_under_autocast(kind: str, given: torch.dtype) -> None:
    moved = layer().bfloat16() if kind == "linear" else convolution(2).bfloat16()
    x = torch.randn((3, 64) if kind == "linear" else (2, 16, 9, 9)).bfloat16()
    with torch.no_grad():
        expected = moved(x)
        with torch.autocast("cpu", torch.bfloat16):
            result = moved(x.to(given))
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected, rtol=2e-2, atol=1e-2)


def test_dtypes_that_differ_are_told_as_torch_tells_them() -> None:
    with torch.no_grad():
        with pytest.raises(KernelError, match="compute in float32"):
            layer()(torch.randn(2, 64).half())
        with pytest.raises(KernelError, match=r"moved to torch\.float16 .* got x of torch\.bfloat16"):
            layer().half()(torch.randn(2, 64).bfloat16())
        with pytest.raises(KernelError, match=r"compute in float32, got x of torch\.float16"):
            convolution(2)(torch.randn(2, 16, 9, 9).half())
        with pytest.raises(KernelError, match="float64"):
            layer().double()(torch.randn(2, 64).double())


@pytest.mark.slow
@LOWER
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_compiled_module_takes_it_too(dtype: torch.dtype, kind: str) -> None:
    moved = (layer() if kind == "linear" else convolution(2)).to(dtype)
    compiled = torch.compile(moved, fullgraph=True, backend="aot_eager")
    x = torch.randn((5, 64) if kind == "linear" else (2, 16, 9, 9)).to(dtype)
    with torch.no_grad():
        assert torch.equal(compiled(x), moved(x))


@LOWER
@pytest.mark.parametrize("bias", [True, False])
def test_another_dtype_than_the_modules_is_refused_with_and_without_a_bias(dtype: torch.dtype, bias: bool) -> None:
    moved, image = layer().to(dtype), convolution(2).to(dtype)
    if not bias:
        moved.bias = image.bias = None
    other = torch.bfloat16 if dtype == torch.float16 else torch.float16
    for x_dtype in (torch.float32, torch.float64, other):
        for module, x in ((moved, torch.randn(3, 64)), (image, torch.randn(1, 16, 9, 9))):
            with pytest.raises(KernelError, match=rf"was moved to {dtype} .* got x of {x_dtype}\. Cast x, or move"):
                module(x.to(x_dtype))
    with pytest.raises(KernelError, match="compute in float32, got x"):
        layer()(torch.randn(3, 64, dtype=dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert moved(torch.randn(3, 64)).dtype == torch.bfloat16


@LOWER
def test_a_module_that_comes_back_to_float32_runs_there(dtype: torch.dtype) -> None:
    back = layer().to(dtype).float()
    x = torch.randn(3, 64)
    torch.testing.assert_close(back(x), F.linear(x, back.weight.dense(), back.bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back.weight.dense(), layer().weight.dense(), rtol=torch.finfo(dtype).eps, atol=1e-5)
