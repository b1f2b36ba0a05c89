"""Linear with n:m:g weights: any shape, any batch, every instruction set, the same bits wherever a token stands."""

import os
import subprocess
import sys

import pytest
import torch

from sparsewright._native import instruction_sets
from sparsewright.core import KernelError
from sparsewright.kernels import linear, reference_linear, which, why_not
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor
from sparsewright.solvers import solve_mask

TOKENS = (1, 2, 7, 16, 33, 64, 100, 128, 1024)
# One to more than four places, short and long groups, one pattern only.
PATTERNS = ("3:6:4", "2:4:16", "1:4:2", "1:10:16", "2:8:4", "4:8:1", "5:7:1", "6:9:1", "3:3:2")


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def nmg_weight(packed_weight, pattern, out, in_, value_dtype=torch.float32):
    return packed_weight(pattern, out, in_, value_dtype, "nmg")


def assert_close(y, x, packed, bias=None):
    truth = reference_linear(x.double(), packed, None if bias is None else bias.double())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), truth, rtol=0, atol=5e-6)


@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_results_agree_with_float64(packed_weight, pattern, value_dtype):
    packed = nmg_weight(packed_weight, pattern, 90, 384, value_dtype)
    bias = random_input(90)
    for tokens in TOKENS:
        x = random_input(tokens, 384)
        assert_close(linear(x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("out,in_", [(1, 8), (3, 9), (50, 160), (33, 257), (770, 100), (5, 3072), (2100, 24)])
@pytest.mark.parametrize("pattern", ["3:6:4", "1:10:8", "2:4:1", "5:7:1"])
def test_no_shape_is_too_odd(packed_weight, pattern, out, in_):
    packed = nmg_weight(packed_weight, pattern, out, in_)
    for tokens in (1, 3, 70):
        x = random_input(tokens, in_)
        assert_close(linear(x, packed), x, packed)


@pytest.mark.parametrize("pattern", ["3:6:4", "1:4:16", "2:8:4", "4:8:1", "5:7:1"])
def test_bits_depend_on_neither_threads_nor_run_nor_place_in_the_batch(packed_weight, pattern):
    packed = nmg_weight(packed_weight, pattern, 250, 760)
    x = random_input(301, 760)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        once, single = linear(x, packed), linear(x[:1], packed)
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(once, linear(x, packed))
            assert torch.equal(once[:20], linear(x[:20], packed))
            assert torch.equal(single, linear(x[:1], packed))
    finally:
        torch.set_num_threads(threads)
    for begin, end in ((0, 2), (5, 12), (17, 81), (100, 149), (200, 301)):
        assert torch.equal(once[begin:end], linear(x[begin:end], packed))


@pytest.mark.parametrize("isa", instruction_sets()[1:])
def test_a_lower_instruction_set_gives_the_same_results(packed_weight, tmp_path, isa):
    cases = {}
    for pattern in PATTERNS:
        packed = nmg_weight(packed_weight, pattern, 50, 136)
        inputs = [random_input(tokens, 136) for tokens in (1, 3, 40, 100)]
        cases[pattern] = (packed.unpack(), [(x, linear(x, packed)) for x in inputs])
    torch.save(cases, tmp_path / "cases.pt")
    program = """
import sys, torch
from sparsewright._native import instruction_set
from sparsewright.kernels import linear
from sparsewright.layouts import pack
from sparsewright.solvers import solve_mask
assert instruction_set() == sys.argv[2]
for pattern, (dense, cases) in torch.load(sys.argv[1], weights_only=True).items():
    mask = solve_mask(dense.abs(), pattern)
    assert torch.equal(mask | (dense == 0), torch.ones_like(mask)), pattern
    packed = pack(dense, mask, "nmg", pattern)
    for x, y in cases:
        torch.testing.assert_close(linear(x, packed), y, rtol=0, atol=5e-6)
print("same")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cases.pt"), isa],
        env={**os.environ, "SPARSEWRIGHT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.strip() == "same", done.stderr


def test_every_instruction_set_solves_the_same_mask(tmp_path):
    # Whole numbers, so that there are many ties.
    scores = (4 * random_input(90, 500)).round()
    torch.save(scores, tmp_path / "scores.pt")
    expected = {text: int(solve_mask(scores, text).double().mul(torch.arange(500.0)).sum()) for text in PATTERNS}
    program = """
import sys, torch
from sparsewright.solvers import solve_mask
scores = torch.load(sys.argv[1], weights_only=True)
for text in sys.argv[2].split():
    print(int(solve_mask(scores, text).double().mul(torch.arange(500.0)).sum()))
"""
    for isa in instruction_sets()[1:]:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "scores.pt"), " ".join(PATTERNS)],
            env={**os.environ, "SPARSEWRIGHT_ISA": isa},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert [int(line) for line in done.stdout.split()] == list(expected.values()), f"{isa}: {done.stderr}"


def test_a_strange_input_spoils_its_own_token_and_no_unfilled_slot(packed_weight):
    # 136 columns end in the middle of a chunk of 80.
    packed = nmg_weight(packed_weight, "3:6:4", 48, 136)
    x = random_input(9, 136)
    sound = linear(x, packed)
    x[4, 80] = float("inf")
    spoiled = linear(x, packed)
    assert torch.equal(spoiled[:4], sound[:4])
    assert torch.equal(spoiled[5:], sound[5:])
    kept = packed.unpack()[:, 80] != 0
    assert torch.isfinite(spoiled[4][~kept]).all()
    assert torch.isinf(spoiled[4][kept]).all()
    single = linear(x[4:5], packed)[0]
    assert torch.isfinite(single[~kept]).all()


def test_strides_dimensions_and_empty_batches_do_not_matter(packed_weight):
    packed = nmg_weight(packed_weight, "2:4:3", 40, 64)
    wide = random_input(9, 128)
    for x in (wide[:, ::2], wide[:, 3:67], random_input(64, 9).T, random_input(2, 3, 64), random_input(64)):
        assert_close(linear(x, packed), x, packed)
    assert linear(torch.empty(0, 64), packed).shape == (0, 40)


def test_gradients_reach_x_and_bias_and_second_derivatives_too(packed_weight):
    packed = nmg_weight(packed_weight, "3:6:1", 13, 50)
    x, bias = random_input(2, 5, 50).requires_grad_(), random_input(13).requires_grad_()
    out = random_input(2, 5, 13)
    got = torch.autograd.grad((linear(x, packed, bias) * out).sum(), (x, bias))
    expected = torch.autograd.grad((reference_linear(x, packed, bias) * out).sum(), (x, bias))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    (first,) = torch.autograd.grad(linear(x, packed).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    weight = packed.unpack()
    torch.testing.assert_close(second, 2 * (torch.ones(2, 5, 50) @ weight.T) @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_operators_pass_opcheck(packed_weight):
    packed = nmg_weight(packed_weight, "3:6:1", 13, 50)
    values, index = packed.tensors["values"], packed.tensors["index"]
    x, grad = torch.randn(5, 50, requires_grad=True), torch.randn(5, 13, requires_grad=True)
    torch.library.opcheck(torch.ops.sparsewright.nmg_linear.default, (x, values, index, torch.randn(13), 13, 6))
    torch.library.opcheck(torch.ops.sparsewright.nmg_linear_input_grad.default, (grad, values, index, 50, 6))


def test_compiled_and_exported_graphs_answer_alike(packed_weight):
    module = torch.nn.Linear(50, 13).eval()
    packed = nmg_weight(packed_weight, "3:6:1", 13, 50)
    module._parameters["weight"] = torch.nn.Parameter(SparseTensor(packed), requires_grad=False)
    module.bias.requires_grad_(False)
    x = random_input(6, 50)
    eager = module(x)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), eager)
    assert torch.equal(torch.export.export(module, (x,)).module()(x), eager)


def test_dispatch_names_the_kernel_and_refuses_what_it_cannot_multiply(packed_weight):
    packed = nmg_weight(packed_weight, "3:6:4", 12, 80)
    assert which(packed, 1) == which(packed, 64) == "nmg_lane"
    reasons = why_not(packed, 64)
    assert not reasons["nmg_lane"]
    assert all(reasons[name] for name in reasons if name != "nmg_lane")
    half = nmg_weight(packed_weight, "3:6:4", 12, 80, torch.bfloat16)
    for x in (random_input(2, 80), random_input(2, 80).requires_grad_()):
        with pytest.raises(KernelError, match=r"nmg_lane: .*bfloat16"):
            linear(x, half)
    with pytest.raises(KernelError, match="not the operand of 13 outputs"):
        torch.ops.sparsewright.nmg_linear(random_input(2, 80), *packed.tensors.values(), None, 13, 6)


def test_a_mask_that_keeps_less_is_multiplied_as_it_is(packed_weight):
    weight = random_input(13, 70)
    mask = solve_mask(weight.abs(), "3:6:4") & (random_input(13, 70) > 0)
    packed = pack(weight, mask, "nmg", "3:6:4")
    x = random_input(17, 70)
    assert torch.equal(packed.unpack(), torch.where(mask, weight, 0))
    torch.testing.assert_close(linear(x, packed), x @ torch.where(mask, weight, 0).T, rtol=0, atol=2e-5)
