"""int8 linear: exact integer sums whatever the tile, thread or instruction set; close to the weights it stands for."""

import os
import subprocess
import sys

import pytest
import torch

from sparsewright._native import instruction_sets
from sparsewright.core import NumericError
from sparsewright.kernels import linear, which, why_not
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor

TOKENS = (1, 2, 7, 16, 17, 33, 64, 65, 100, 128, 300)
PATTERNS = ("dense", "2:4x4", "2:4x2", "2x1@30%", "1:4x8", "2:4x16", "4x1@50%", "4x1@30%", "16x1@10%", "4x4@25%")


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def int8_weight(packed_weight, pattern, out, in_):
    return packed_weight(pattern, out, in_, torch.int8, "int8")


def by_the_definition(x, packed, bias):
    """What the kernel promises from two tokens on: x rounded to 7 bits, one range per token, sums of integers."""
    low = x.min(-1, keepdim=True).values
    span = x.max(-1, keepdim=True).values - low
    rounded = ((x - low) * torch.where(span > 0, 127.0 / span, 0.0) + 0.5).floor()
    return (low.double() + rounded.double() * (span / 127.0).double()) @ packed.unpack().double().T + bias.double()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_results_are_those_of_the_rounded_input_and_weight(packed_weight, pattern):
    packed = int8_weight(packed_weight, pattern, 96, 384)
    bias = random_input(96)
    for tokens in TOKENS:
        x = 3 * random_input(tokens, 384) + 0.5
        truth = (
            x.double() @ packed.unpack().double().T + bias.double()
            if tokens == 1
            else by_the_definition(x, packed, bias)
        )
        torch.testing.assert_close(linear(x, packed, bias).double(), truth, rtol=0, atol=2e-5)


@pytest.mark.parametrize("out,in_", [(1, 1), (3, 5), (37, 100), (33, 257), (130, 1000), (5, 3072), (2100, 24)])
@pytest.mark.parametrize("pattern", ["dense", "4x1@50%", "16x1@25%", "8x1@40%"])
def test_no_shape_is_too_odd(packed_weight, pattern, out, in_):
    packed = int8_weight(packed_weight, pattern, out, in_)
    bias = random_input(out)
    for tokens in (2, 3, 70):
        x = random_input(tokens, in_)
        torch.testing.assert_close(
            linear(x, packed, bias).double(), by_the_definition(x, packed, bias), rtol=0, atol=2e-5
        )
    x = random_input(1, in_)
    truth = x.double() @ packed.unpack().double().T
    torch.testing.assert_close(linear(x, packed).double(), truth, rtol=0, atol=2e-5)


def test_rounding_costs_less_than_two_percent(packed_weight):
    packed = int8_weight(packed_weight, "dense", 384, 384)
    x = random_input(64, 384)
    weight = torch.randn(384, 384, generator=torch.Generator().manual_seed(384 * 4096 + 384)) / 384**0.5
    exact = x @ weight.T
    assert float((linear(x, packed) - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("pattern", ["dense", "2:4x4", "2:4x2", "1:4x16", "4x1@30%"])
def test_bits_depend_on_neither_threads_nor_run_nor_place_in_the_batch(packed_weight, pattern):
    packed = int8_weight(packed_weight, pattern, 256, 768)
    x = random_input(301, 768)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        once = linear(x, packed)
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(once, linear(x, packed))
            assert torch.equal(once[:20], linear(x[:20], packed))
    finally:
        torch.set_num_threads(threads)
    for begin, end in ((0, 2), (5, 12), (17, 81), (200, 301)):
        assert torch.equal(once[begin:end], linear(x[begin:end], packed))


def test_every_instruction_set_gives_the_same_bits(packed_weight, tmp_path):
    cases = {}
    for pattern in ("dense", "2:4x4", "1:4x2", "1:4x8", "16x1@20%"):
        packed = int8_weight(packed_weight, pattern, 50, 136)
        for tokens in (2, 40, 100):
            x = random_input(tokens, 136)
            cases[f"{pattern} {tokens}"] = (packed.unpack(), x, linear(x, packed))
    torch.save(cases, tmp_path / "cases.pt")
    program = """
import sys, torch
from sparsewright._native import instruction_set
from sparsewright.kernels import linear
from sparsewright.layouts import pack
assert instruction_set() == sys.argv[2]
for name, (dense, x, y) in torch.load(sys.argv[1], weights_only=True).items():
    pattern = name.split()[0]
    kept = torch.ones_like(dense, dtype=torch.bool) if pattern == "dense" else dense != 0
    packed = pack(dense, kept, "int8", pattern)
    assert torch.equal(packed.unpack(), dense), name
    assert torch.equal(linear(x, packed), y), name
print("same")
"""
    for isa in instruction_sets()[1:]:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "cases.pt"), isa],
            env={**os.environ, "SPARSEWRIGHT_ISA": isa},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == "same", f"{isa}: {done.stderr}"


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 15, 16, 135])
def test_a_token_that_is_not_finite_answers_nan_and_the_others_as_ever(packed_weight, strange, place):
    packed = int8_weight(packed_weight, "2:4x4", 50, 136)
    x = random_input(9, 136)
    sound = linear(x, packed)
    x[4, place] = strange
    spoiled = linear(x, packed)
    assert not torch.isfinite(spoiled[4]).any()
    assert torch.equal(spoiled[:4], sound[:4])
    assert torch.equal(spoiled[5:], sound[5:])


def test_constant_and_tiny_tokens_are_exact_or_nearly_so(packed_weight):
    packed = int8_weight(packed_weight, "4x1@50%", 40, 64)
    for value in (0.0, 1.5, -2.0, 1e-38):
        x = torch.full((3, 64), value)
        truth = x.double() @ packed.unpack().double().T
        torch.testing.assert_close(linear(x, packed).double(), truth, rtol=1e-5, atol=1e-30)
    x = random_input(3, 64) * 1e-36
    assert torch.isfinite(linear(x, packed)).all()


def test_strides_dimensions_and_empty_batches_do_not_matter(packed_weight):
    packed = int8_weight(packed_weight, "2:4x4", 40, 64)
    wide = random_input(9, 128)
    straight = linear(wide[:, 3:67].contiguous(), packed)
    assert torch.equal(linear(wide[:, 3:67], packed), straight)
    assert torch.equal(linear(wide[:8, 3:67].view(2, 4, 64), packed).view(8, 40), straight[:8])
    assert linear(torch.empty(0, 64), packed).shape == (0, 40)


def test_gradients_are_those_of_the_rounded_weight(packed_weight):
    packed = int8_weight(packed_weight, "2:4x4", 40, 64)
    x, bias = random_input(5, 64).requires_grad_(), random_input(40).requires_grad_()
    out = random_input(5, 40)
    (linear(x, packed, bias) * out).sum().backward()
    torch.testing.assert_close(x.grad, out @ packed.unpack())
    torch.testing.assert_close(bias.grad, out.sum(0))


@pytest.mark.parametrize("pattern", ["dense", "4x1@50%"])
def test_compiled_and_exported_graphs_answer_alike(packed_weight, pattern):
    module = torch.nn.Linear(64, 40).eval()
    packed = int8_weight(packed_weight, pattern, 40, 64)
    module._parameters["weight"] = torch.nn.Parameter(SparseTensor(packed), requires_grad=False)
    module.bias.requires_grad_(False)
    x = random_input(6, 64)
    eager = module(x)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), eager)
    assert torch.equal(torch.export.export(module, (x,)).module()(x), eager)


def test_patterns_whose_rows_choose_alone_are_refused_by_name():
    weight = torch.randn(8, 16)
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:, ::2] = True
    mask[0] = ~mask[0]
    with pytest.raises(Exception, match="groups of 2, 4, 8 or 16"):
        pack(weight, mask, "int8", "2:4")


def test_dispatch_names_the_kernel_and_the_others_reasons(packed_weight):
    packed = int8_weight(packed_weight, "2:4x4", 40, 64)
    assert which(packed, 1) == which(packed, 64) == "int8_lane"
    reasons = why_not(packed, 64)
    assert not reasons["int8_lane"]
    assert all(reasons[name] for name in reasons if name != "int8_lane")


def test_very_large_tokens_leave_the_others_alone_and_stay_finite_up_to_1e35(packed_weight):
    packed = int8_weight(packed_weight, "4x1@50%", 40, 64)
    x = random_input(4, 64)
    sound = linear(x, packed)
    x[1, 3], x[1, 4] = 1e35, -1e35
    x[2, 3], x[2, 4] = 3e38, -3e38
    y = linear(x, packed)
    assert torch.equal(y[[0, 3]], sound[[0, 3]])
    truth = x[1].double() @ packed.unpack().double().T
    assert float((y[1].double() - truth).abs().max()) < 0.05 * 1e35


def test_second_derivatives_are_those_of_the_rounded_weight(packed_weight):
    packed = int8_weight(packed_weight, "2:4x4", 40, 64)
    x = random_input(5, 64).requires_grad_()
    (first,) = torch.autograd.grad(linear(x, packed).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    weight = packed.unpack()
    torch.testing.assert_close(second, 2 * (torch.ones(5, 64) @ weight.T) @ weight, rtol=1e-2, atol=0.2)


def test_a_weight_beyond_single_precision_is_refused():
    weight = torch.randn(8, 16, dtype=torch.float64)
    weight[0, 0] = 1e39
    with pytest.raises(NumericError, match=r"\[0, 0\]"):
        pack(weight, torch.ones(8, 16, dtype=torch.bool), "int8", "dense")
