"""Triton kernels against float64: run by `test_triton.py` in a process of its own.

With `TRITON_INTERPRET=1` they run on the CPU in Triton's interpreter, without it on the CUDA device. Not collected with
the other tests, because the interpreter is chosen when Triton is first imported.
"""

import pytest
import torch
from kernel_weights import obeying_mask, random_weight

from sparsewright.core import KernelError, parse_pattern
from sparsewright.kernels.sparse_linear import triton_backward
from sparsewright.kernels.sparse_linear.derived import DerivedCache
from sparsewright.kernels.sparse_linear.triton import interpreting, triton_linear
from sparsewright.kernels.sparse_linear.triton_backward import triton_input_grad, triton_weight_grad
from sparsewright.layouts import pack

DEVICE = "cpu" if interpreting() else "cuda"
# Once per dtype of the result: float32 sums, then one rounding.
TOLERANCE = {torch.float32: (0, 5e-6), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}
CASES = (("2:4", 50, 160), ("10%", 77, 308), ("2:4x2", 50, 160), ("4x1@50%", 77, 308), ("8x1@30%", 50, 160))
CASES += (("1:4x16", 77, 308), ("16x1@40%", 50, 160))


def operand(pattern, out, in_, value_dtype=torch.float32):
    rule = parse_pattern(pattern)
    weight = random_weight(out, in_)
    packed = pack(weight, obeying_mask(weight, rule), "vector", rule, value_dtype).to(DEVICE)
    return tuple(packed.tensors.values()), packed.unpack().double()


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(DEVICE, dtype)


def assert_close(got, truth, dtype):
    rtol, atol = TOLERANCE[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), truth, rtol=rtol, atol=atol)


@pytest.mark.parametrize("pattern,out,in_", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_results_agree_with_float64(pattern, out, in_, dtype):
    tensors, weight = operand(pattern, out, in_, dtype)
    bias = randn(out)
    for tokens in (1, 3, 33):
        x = randn(tokens, in_, dtype=dtype)
        assert_close(triton_linear(x, *tensors, bias, out), x.double() @ weight.T + bias.double(), dtype)
    assert_close(triton_linear(x, *tensors, None, out), x.double() @ weight.T, dtype)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_every_kernel_serves_every_group(group):
    for dtype in (torch.float32, torch.bfloat16):
        tensors, weight = operand(f"{group}x1@30%", 34, 40, dtype)
        x = randn(4, 40, dtype=dtype)
        for kernel in ("triton_few_tokens", "triton_lanes", "triton_tensor_core"):
            if (kernel, dtype) != ("triton_tensor_core", torch.float32):
                y = triton_linear(x, *tensors, None, 34, kernel=kernel)
                assert_close(y, x.double() @ weight.T, dtype)


@pytest.mark.parametrize("out,in_", [(1, 1), (3, 5), (2, 700), (130, 24)])
def test_no_shape_is_too_odd(out, in_):
    tensors, weight = operand("4x1@50%", out, in_)
    for tokens in (1, 5, 130):
        x = randn(tokens, in_)
        assert_close(triton_linear(x, *tensors, None, out), x.double() @ weight.T, torch.float32)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_of_x_and_values_may_differ(x_dtype, value_dtype):
    tensors, weight = operand("2:4x16", 32, 64, value_dtype)
    bias = randn(32, dtype=x_dtype)
    for tokens in (1, 7):
        x = randn(tokens, 64, dtype=x_dtype)
        assert_close(triton_linear(x, *tensors, bias, 32), x.double() @ weight.T + bias.double(), x_dtype)


@pytest.mark.parametrize("tokens", [1, 9])
def test_activations_are_fused(tokens):
    tensors, weight = operand("2:4x4", 32, 64)
    x, bias = randn(tokens, 64), randn(32)
    plain = x.double() @ weight.T + bias.double()
    for name, truth in (("relu", plain.relu()), ("gelu", torch.nn.functional.gelu(plain))):
        assert_close(triton_linear(x, *tensors, bias, 32, activation=name), truth, torch.float32)


def test_strides_dimensions_and_empty_batches_do_not_matter():
    tensors, weight = operand("2:4x8", 16, 32)
    wide = randn(9, 64)
    for x in (wide[:, ::2], randn(32, 9).T, randn(2, 3, 32), randn(32)):
        assert_close(triton_linear(x, *tensors, None, 16), x.double() @ weight.T, torch.float32)
    assert triton_linear(randn(2, 0, 32), *tensors, None, 16).shape == (2, 0, 16)
    assert triton_input_grad(randn(0, 16), *tensors, 32).shape == (0, 32)


@pytest.mark.parametrize("pattern", ["2:4", "1:4x16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bits_depend_on_neither_run_nor_place_in_the_batch(pattern, dtype):
    tensors, _ = operand(pattern, 16, 208, dtype)
    x = randn(70, 208, dtype=dtype)
    once = triton_linear(x, *tensors, None, 16)
    assert torch.equal(once, triton_linear(x, *tensors, None, 16))
    turned = triton_linear(x.roll(13, 0), *tensors, None, 16)
    assert torch.equal(once, turned.roll(-13, 0))
    few = triton_linear(x[:4], *tensors, None, 16)
    assert torch.equal(few[2:3], triton_linear(x[2:3], *tensors, None, 16))


@pytest.mark.parametrize(
    "pattern,out,in_", [("10%", 50, 60), ("2:4x2", 18, 24), ("4x1@50%", 77, 28), ("1:4x16", 50, 40)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_agree_with_float64(pattern, out, in_, dtype):
    tensors, weight = operand(pattern, out, in_, dtype)
    x, grad = randn(2, 65, in_, dtype=dtype), randn(2, 65, out, dtype=dtype)
    assert_close(triton_input_grad(grad, *tensors, in_), grad.double() @ weight, dtype)
    full = grad.double().flatten(0, 1).T @ x.double().flatten(0, 1)
    group = tensors[0].shape[1]
    kept = triton_weight_grad(grad, x, *tensors[1:], group)
    padded = torch.nn.functional.pad(full, (0, 0, 0, -out % group)).unflatten(0, (-1, group)).transpose(1, 2)
    row, column = triton_backward.operand_places(tensors[1], tensors[2], in_)
    # Sums over 130 tokens: what they round to grows with them.
    assert_close(kept / 130**0.5, padded[row, column] / 130**0.5, dtype)


def test_nothing_kept_gives_the_bias():
    rule = parse_pattern("4x1@50%")
    nothing = torch.zeros(12, 16, dtype=torch.bool)
    packed = pack(torch.ones(12, 16), nothing, "vector", rule).to(DEVICE)
    tensors, bias = tuple(packed.tensors.values()), randn(12)
    for tokens in (1, 6):
        assert torch.equal(triton_linear(randn(tokens, 16), *tensors, bias, 12), bias.expand(tokens, 12))
    assert not triton_input_grad(randn(3, 12), *tensors, 16).any()
    assert triton_weight_grad(randn(3, 12), randn(3, 16), *tensors[1:], 4).shape == tensors[0].shape


@pytest.mark.parametrize(
    "change,match",
    [
        ({"activation": "tanh"}, "relu or gelu, got 'tanh'"),
        ({"kernel": "triton_abacus"}, "triton_abacus: there is no such kernel"),
        ({"kernel": "triton_tensor_core"}, "float16, torch.bfloat16 values"),
        ({"out": 40}, "not the operand of 40 outputs"),
        ({"x": torch.ones(2, 32, dtype=torch.float64, device=DEVICE)}, "x of torch.float64"),
        ({"x": torch.ones(2, 32, device="meta")}, "got x on meta"),
        ({"x": torch.ones(2, 32, device=DEVICE), "pointers": torch.ones(1, device="meta")}, "pointers on meta"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(change, match):
    (values, index, pointers), _ = operand("2:4x4", 16, 32)
    call = {"x": randn(2, 32), "values": values, "index": index, "pointers": pointers, "bias": None, "out": 16}
    with pytest.raises(KernelError, match=match):
        triton_linear(**{**call, **change})


def test_the_index_by_column_is_kept_while_its_weight_lives(monkeypatch):
    cache = DerivedCache()
    monkeypatch.setattr(triton_backward, "_by_column", cache)
    tensors, _ = operand("2:4", 8, 16)
    first = triton_input_grad(randn(2, 8), *tensors, 16)
    assert torch.equal(first, triton_input_grad(randn(2, 8), *(tensor.detach() for tensor in tensors), 16))
    assert len(cache) == 1
    del tensors
    assert len(cache) == 0


def test_a_kept_result_is_renewed_when_its_source_is_written_to():
    cache: DerivedCache[int] = DerivedCache()
    source = torch.zeros(3)
    made = iter(range(9))
    assert [cache.get((source,), lambda: next(made)) for _ in range(2)] == [0, 0]
    source.add_(1)
    assert cache.get((source,), lambda: next(made)) == 1
    assert cache.get((source[1:],), lambda: next(made)) == 2
