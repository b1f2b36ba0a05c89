"""Activations that kernels apply to y: what torch computes after them, for every kernel and value type."""

import pytest
import torch

from sparsewright.core import DispatchEntry, DispatchTable, KernelError
from sparsewright.kernels import linear, set_dispatch_table

# Of float32, as erf is known to 1.5e-7.
TOLERANCE = 1e-6
EXACT = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
}
VALUES = [("vector", torch.float32), ("vector", torch.float16), ("int8", torch.int8)]


def random_input(*shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize("layout,value_dtype", VALUES, ids=["float32", "float16", "int8"])
@pytest.mark.parametrize("pattern", ["2:4x4", "16x1@30%", "8x1@20%", "2:4"])
def test_results_are_those_of_torch_after_the_product(packed_weight, pattern, layout, value_dtype, activation):
    if pattern == "2:4":
        layout = "int8_weights" if layout == "int8" else layout
    packed = packed_weight(pattern, 83, 300, value_dtype, layout)
    bias = random_input(83)
    for tokens in (1, 2, 7, 33, 130):
        x = random_input(tokens, 300)
        truth = EXACT[activation](linear(x, packed, bias).double())
        torch.testing.assert_close(linear(x, packed, bias, activation).double(), truth, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kernel", ["token_lane", "row_lane"])
@pytest.mark.parametrize("activation", EXACT)
def test_every_kernel_activates_each_output_once_however_many_panels_it_takes(packed_weight, kernel, activation):
    set_dispatch_table(DispatchTable((DispatchEntry("sparse_linear", (kernel,)),)))
    try:
        packed = packed_weight("4x1@30%", 200, 3072)
        x = random_input(40, 3072)
        truth = EXACT[activation](linear(x, packed).double())
        torch.testing.assert_close(linear(x, packed, None, activation).double(), truth, rtol=0, atol=TOLERANCE)
    finally:
        set_dispatch_table(None)


@pytest.mark.parametrize("activation", EXACT)
def test_the_n_m_g_kernel_activates_too(packed_weight, activation):
    packed = packed_weight("3:6:4", 84, 320, layout="nmg")
    for tokens in (1, 3, 40):
        x = random_input(tokens, 320)
        truth = EXACT[activation](linear(x, packed).double())
        torch.testing.assert_close(linear(x, packed, None, activation).double(), truth, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("activation", EXACT)
def test_large_and_strange_outputs_end_as_they_do_in_torch(packed_weight, activation):
    packed = packed_weight("2:4x4", 32, 8)
    bias = torch.zeros(32)
    bias[:10] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 9.0, -9.0, 1e30, -1e30, torch.inf, torch.nan])
    for tokens in (1, 5):
        x = torch.zeros(tokens, 8)
        truth = EXACT[activation](bias.double()).to(torch.float32).expand(tokens, 32)
        torch.testing.assert_close(
            linear(x, packed, bias, activation), truth, rtol=1e-6, atol=TOLERANCE, equal_nan=True
        )


@pytest.mark.parametrize("activation", EXACT)
def test_gradients_pass_the_activation(packed_weight, activation):
    packed = packed_weight("2:4x4", 24, 40)
    x, bias = random_input(5, 40).requires_grad_(), random_input(24).requires_grad_()
    linear(x, packed, bias, activation).square().sum().backward()
    dense, plain, shift = packed.unpack(), x.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    EXACT[activation](torch.nn.functional.linear(plain, dense, shift)).square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, shift.grad, rtol=1e-4, atol=1e-4)


def test_the_masked_layout_and_compiled_graphs_activate_too(packed_weight):
    masked, vector = packed_weight("2:4x4", 24, 40, layout="masked"), packed_weight("2:4x4", 24, 40)
    x = random_input(5, 40)
    truth = torch.relu(linear(x, vector))
    torch.testing.assert_close(linear(x, masked, None, "relu"), truth)
    compiled = torch.compile(lambda x: linear(x, vector, None, "relu"), fullgraph=True)
    torch.testing.assert_close(compiled(x), truth)


def test_an_unknown_activation_is_refused_with_the_known_ones(packed_weight):
    with pytest.raises(KernelError, match=r"fuse relu, gelu and gelu_tanh, got 'gleu'. Did you mean 'gelu'\?"):
        linear(random_input(2, 40), packed_weight("2:4x4", 24, 40), None, "gleu")
