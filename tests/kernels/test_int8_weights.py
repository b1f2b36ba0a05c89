"""Bytes with a scale per row under float32 activations: every group and batch, rounding the weight and nothing else."""

import pytest
import torch

from sparsewright.core import LayoutError
from sparsewright.kernels import linear, which
from sparsewright.layouts import pack

PATTERNS = ("2:4", "1:4", "10%", "60%", "2:4x2", "2:4x4", "1:4x16", "8x1@30%")


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_results_are_those_of_the_rounded_weight_and_the_exact_input(packed_weight, pattern):
    packed = packed_weight(pattern, 83, 296, torch.int8, "int8_weights")
    dense, bias = packed.unpack().double(), random_input(83)
    for tokens in (1, 2, 7, 16, 33, 130):
        x = random_input(tokens, 296)
        for activation, after in ((None, lambda y: y), ("relu", torch.relu)):
            truth = after(x.double() @ dense.T + bias.double())
            torch.testing.assert_close(linear(x, packed, bias, activation).double(), truth, rtol=0, atol=5e-6)


@pytest.mark.parametrize("out,in_", [(1, 4), (3, 8), (37, 100), (130, 1000), (5, 3072)])
@pytest.mark.parametrize("pattern", ["2:4", "4x1@50%", "16x1@25%"])
def test_no_shape_is_too_odd(packed_weight, pattern, out, in_):
    packed = packed_weight(pattern, out, in_, torch.int8, "int8_weights")
    for tokens in (1, 3, 70):
        x = random_input(tokens, in_)
        torch.testing.assert_close(
            linear(x, packed).double(), x.double() @ packed.unpack().double().T, rtol=0, atol=1e-5
        )


def test_rounding_costs_less_than_one_percent_of_the_largest_output(packed_weight):
    exact, rounded = packed_weight("2:4", 64, 512), packed_weight("2:4", 64, 512, torch.int8, "int8_weights")
    x = random_input(20, 512)
    wrong = (linear(x, rounded) - linear(x, exact)).abs().max()
    assert 0 < wrong < 0.01 * linear(x, exact).abs().max()


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4"])
def test_gradients_and_compiled_graphs_agree_with_the_rounded_weight(packed_weight, pattern):
    packed = packed_weight(pattern, 24, 40, torch.int8, "int8_weights")
    x, bias = random_input(5, 40).requires_grad_(), random_input(24).requires_grad_()
    linear(x, packed, bias).square().sum().backward()
    plain, shift = x.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    torch.nn.functional.linear(plain, packed.unpack(), shift).square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, shift.grad, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(lambda x, b: linear(x, packed, b), fullgraph=True)
    torch.testing.assert_close(compiled(x.detach(), bias.detach()), linear(x.detach(), packed, bias.detach()))


def test_bits_depend_on_neither_threads_nor_place_in_the_batch(packed_weight):
    for pattern in ("2:4", "2:4x4", "1:4x16"):
        packed = packed_weight(pattern, 256, 1024, torch.int8, "int8_weights")
        x = random_input(150, 1024)
        y = linear(x, packed)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert torch.equal(linear(x, packed), y)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(linear(x[40:], packed), y[40:])


def test_rows_that_choose_alone_get_this_layout_and_rows_that_share_get_int8_unless_asked(packed_weight):
    weight, mask = random_input(8, 16), (torch.arange(16) % 2 == 0).expand(8, 16)
    assert pack(weight, mask, pattern="2:4", value_dtype=torch.int8).layout == "int8_weights"
    assert pack(weight, mask, pattern="2:4x4", value_dtype=torch.int8).layout == "int8"
    assert which(packed_weight("2:4x4", 8, 16, torch.int8, "int8_weights"), 20) == "token_lane"
    with pytest.raises(LayoutError, match=r"holds torch\.int8 values, not torch\.float32"):
        pack(weight, mask, "int8_weights", "2:4", torch.float32)
