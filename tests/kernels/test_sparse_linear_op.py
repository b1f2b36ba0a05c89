"""The registered operators under autograd, opcheck, torch.compile and torch.export."""

import pytest
import torch

from sparsewright.core import KernelError
from sparsewright.kernels import linear, reference_linear, which, why_not
from sparsewright.kernels.sparse_linear.operand import kept_per_8


def operands(packed):
    return packed.tensors["values"], packed.tensors["index"], packed.tensors["pointers"]


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "30%"])
def test_gradients_reach_x_and_bias(packed_weight, pattern):
    packed = packed_weight(pattern, 12, 16)
    x = torch.randn(2, 3, 16, requires_grad=True)
    bias = torch.randn(12, requires_grad=True)
    y = linear(x, packed, bias)
    weights = torch.randn_like(y)
    got = torch.autograd.grad((y * weights).sum(), (x, bias))
    expected = torch.autograd.grad((reference_linear(x, packed, bias) * weights).sum(), (x, bias))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_first_and_second_derivatives_pass_gradcheck(packed_weight):
    packed = packed_weight("2:4x4", 8, 16)
    # The kernels are float32 and linear: wide steps cost no accuracy.
    x, bias = torch.randn(3, 16, requires_grad=True), torch.randn(8, requires_grad=True)
    options = {"eps": 0.5, "atol": 1e-3, "rtol": 1e-3}
    assert torch.autograd.gradcheck(lambda x, b: linear(x, packed, b), (x, bias), **options)
    assert torch.autograd.gradgradcheck(lambda x: linear(x, packed) ** 2, (x,), eps=1e-2, atol=5e-2, rtol=5e-2)


def test_gradients_flow_where_only_the_bias_asks(packed_weight):
    packed = packed_weight("2:4", 8, 16)
    bias = torch.zeros(8, requires_grad=True)
    linear(torch.ones(5, 16), packed, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((8,), 5.0))


@pytest.mark.slow
def test_operators_pass_opcheck(packed_weight):
    packed = packed_weight("2:4x4", 12, 16)
    x = torch.randn(5, 16, requires_grad=True)
    torch.library.opcheck(torch.ops.sparsewright.linear.default, (x, *operands(packed), torch.randn(12), 12, 0))
    torch.library.opcheck(torch.ops.sparsewright.linear.default, (x, *operands(packed), None, 12))
    grad = torch.randn(5, 12, requires_grad=True)
    torch.library.opcheck(torch.ops.sparsewright.linear_input_grad.default, (grad, *operands(packed), 16))


@pytest.mark.slow
def test_compile_takes_the_whole_graph_and_gradients(packed_weight):
    packed = packed_weight("2:4x4", 12, 16)
    compiled = torch.compile(lambda x: linear(torch.relu(x), packed).tanh(), fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 16)
    torch.testing.assert_close(compiled(x), linear(torch.relu(x), packed).tanh())
    x.requires_grad_()
    compiled(x).sum().backward()
    expected = torch.autograd.grad(reference_linear(torch.relu(x), packed).tanh().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.slow
def test_export_keeps_the_number_of_tokens_open(packed_weight):
    packed = packed_weight("2:4x4", 12, 16)

    class Model(torch.nn.Module):
        def forward(self, x):
            return linear(x, packed) + 1

    tokens = torch.export.Dim("tokens", min=2, max=4096)
    program = torch.export.export(Model(), (torch.randn(7, 16),), dynamic_shapes={"x": {0: tokens}})
    assert any("sparsewright.linear" in str(node.target) for node in program.graph.nodes)
    for count in (2, 19):
        x = torch.randn(count, 16)
        torch.testing.assert_close(program.module()(x), linear(x, packed) + 1)


def test_why_not_lists_each_kernel_and_an_empty_list_for_the_able(packed_weight):
    packed = packed_weight("2:4", 8, 16)
    assert why_not(packed, 1)["single_token"] == []
    assert "2 tokens" in why_not(packed, 1)["token_lane"][0]
    assert "groups of 4" in why_not(packed, 9)["row_lane"][0]
    assert "'masked'" in why_not(packed, 9)["masked_dense"][0]
    assert which(packed, 9) == "token_lane"
    assert which(packed_weight("2:4x16", 16, 16), 9) == "row_lane"


def test_a_storage_layout_is_refused_with_every_reason_never_run_densely(packed_weight):
    packed = packed_weight("2:4", 8, 16, layout="bitmask")
    with pytest.raises(KernelError, match=r"token_lane: .*storage form.*single_token: .*masked_dense: "):
        linear(torch.randn(2, 16), packed)
    with pytest.raises(KernelError, match="storage form"):
        linear(torch.randn(2, 16, requires_grad=True), packed)


def test_the_masked_layout_runs_densely_because_it_was_asked_for(packed_weight):
    packed = packed_weight("2:4", 8, 16, layout="masked")
    assert which(packed, 3) == "masked_dense"
    x = torch.randn(3, 16)
    torch.testing.assert_close(linear(x, packed), reference_linear(x, packed))


def test_bfloat16_values_can_be_stored_but_not_multiplied(packed_weight):
    packed = packed_weight("2:4", 8, 16, torch.bfloat16)
    with pytest.raises(KernelError, match="bfloat16"):
        linear(torch.randn(2, 16), packed)


@pytest.mark.parametrize(
    "x, bias, match",
    [
        (torch.randn(2, 15), None, r"\(\.\.\., 16\), got \(2, 15\)"),
        (torch.tensor(1.0), None, r"got \(\)"),
        (torch.randn(2, 16).double(), None, "float64"),
        (torch.randn(2, 16).bfloat16(), None, "bfloat16"),
        (torch.randn(2, 16), torch.randn(7), r"bias of shape \(8,\), got \(7,\)"),
        (torch.randn(2, 16), torch.randn(8).half(), "bias of torch.float16"),
        (torch.randn(2, 16), torch.empty(8, device="meta"), "on one device, got cpu and meta"),
        (torch.randn(2, 16).to_sparse(), None, "plain tensor, got torch.sparse_coo"),
        (torch.randn(2, 16).to_mkldnn(), None, "plain tensor, got torch._mkldnn"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words(packed_weight, x, bias, match):
    packed = packed_weight("2:4x4", 8, 16)
    with pytest.raises(KernelError, match=match):
        linear(x, packed, bias)


def test_shapes_are_known_without_data(packed_weight):
    packed = packed_weight("2:4x4", 8, 16)
    assert linear(torch.empty(2, 5, 16, device="meta"), packed).shape == (2, 5, 8)


def test_operands_leave_the_cache_with_their_weight(packed_weight):
    from sparsewright.kernels.sparse_linear import operand

    before = len(operand._operands)
    packed = packed_weight("2:4", 8, 16)
    linear(torch.randn(2, 16), packed)
    assert len(operand._operands) == before + 1
    del packed
    assert len(operand._operands) == before


def test_only_patterns_with_whole_groups_in_8_columns_are_regular():
    from sparsewright.core import parse_pattern

    kept = {
        text: kept_per_8(parse_pattern(text))
        for text in ("2:4", "1:4", "1:8", "4:8", "1:2", "3:4", "2:4x2", "50%", "4:16")
    }
    assert kept == {"2:4": 4, "1:4": 2, "1:8": 1, "4:8": 4, "1:2": 4, "3:4": 0, "2:4x2": 0, "50%": 0, "4:16": 0}
