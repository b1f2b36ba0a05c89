"""Results of sparse linear against float64, for every kernel, group, batch and odd shape."""

import subprocess
import sys

import pytest
import torch

from sparsewright._native import instruction_sets
from sparsewright.core import DispatchEntry, DispatchTable
from sparsewright.kernels import linear, reference_linear, set_dispatch_table, which
from sparsewright.kernels.sparse_linear.candidates import NATIVE

# Written once per value type: the reference uses the stored values, so half values lose nothing more.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 5e-6}

TOKENS = (1, 2, 7, 33, 100, 128, 1024)
PATTERNS = (
    "2:4",
    "1:4",
    "1:8x2",
    "2:4x4",
    "3:8x8",
    "1:4x16",
    "10%",
    "60%",
    "2x1@30%",
    "4x1@50%",
    "16x1@10%",
    "3:6:4",
    "2:4tx4",
)


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def assert_close(y, x, packed, bias=None):
    truth = reference_linear(x.double(), packed, None if bias is None else bias.double())
    assert y.shape == truth.shape
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), truth, rtol=0, atol=TOLERANCE[packed.value_dtype])


@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_results_agree_with_float64(packed_weight, pattern, value_dtype):
    packed = packed_weight(pattern, 96, 384, value_dtype)
    bias = random_input(96)
    for tokens in TOKENS:
        x = random_input(tokens, 384)
        assert_close(linear(x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("out,in_", [(1, 1), (3, 5), (37, 100), (33, 257), (130, 1000), (5, 3072), (2100, 24)])
@pytest.mark.parametrize("pattern", ["30%", "4x1@50%", "16x1@25%", "2x1@50%", "8x1@40%"])
def test_no_shape_is_too_odd(packed_weight, pattern, out, in_):
    packed = packed_weight(pattern, out, in_)
    for tokens in (1, 3, 70):
        x = random_input(tokens, in_)
        assert_close(linear(x, packed), x, packed)


# Strips, which hang on what the weight keeps, have tests of their own.
ANY_PLACES = [kernel for kernel in NATIVE if kernel.most_tokens is None and kernel.name != "strip_lane"]


@pytest.mark.parametrize("kernel", ANY_PLACES, ids=lambda k: k.name)
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16])
def test_every_kernel_serves_every_batch_that_it_claims(packed_weight, kernel, value_dtype):
    set_dispatch_table(DispatchTable((DispatchEntry("sparse_linear", (kernel.name,)),)))
    try:
        for group in kernel.groups:
            packed = packed_weight(f"{group}x1@40%", 50, 300, value_dtype)
            for tokens in (2, 3, 4, 5, 6, 7, 8, 9, 25, 49, 57, 64, 65):
                assert which(packed, tokens) == kernel.name
                x = random_input(tokens, 300)
                assert_close(linear(x, packed), x, packed)
    finally:
        set_dispatch_table(None)


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "1:4x16"])
def test_strides_dimensions_and_empty_batches_do_not_matter(packed_weight, pattern):
    packed = packed_weight(pattern, 40, 64)
    wide = random_input(9, 128)
    for x in (wide[:, ::2], wide[:, 3:67], random_input(64, 9).T, random_input(2, 3, 64), random_input(64)):
        assert_close(linear(x, packed), x, packed)
    assert_close(linear(wide[:1, :64].expand(9, 64), packed), wide[:1, :64].expand(9, 64), packed)
    assert linear(torch.empty(0, 64), packed).shape == (0, 40)
    assert linear(torch.empty(2, 0, 64), packed).shape == (2, 0, 40)


def test_rows_a_multiple_of_4096_bytes_apart_do_not_matter(packed_weight):
    packed = packed_weight("1:4x16", 64, 2048)
    x = random_input(19, 2048)
    assert_close(linear(x, packed), x, packed)


@pytest.mark.parametrize("pattern", ["2:4", "1:8x2", "2:4x4", "1:4x8", "1:4x16", "20%", "2x1@20%"])
def test_bits_depend_on_neither_threads_nor_run_nor_place_in_the_batch(packed_weight, pattern):
    packed = packed_weight(pattern, 256, 768)
    x = random_input(301, 768)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        once = linear(x, packed)
        assert torch.equal(once, linear(x, packed))
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(once, linear(x, packed))
            assert torch.equal(linear(x[:1], packed), linear(x[:1].clone(), packed))
    finally:
        torch.set_num_threads(threads)
    for begin, end in ((0, 2), (5, 12), (17, 81), (200, 301)):
        assert torch.equal(once[begin:end], linear(x[begin:end], packed))


def test_a_zero_among_kept_weights_counts_as_kept():
    from sparsewright.layouts import pack

    weight = torch.ones(4, 8)
    weight[:, 0] = 0.0
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, ::2] = True
    packed = pack(weight, mask, "vector")
    assert packed.tensors["index"].numel() == 4
    assert torch.equal(linear(torch.ones(2, 8), packed), torch.full((2, 4), 3.0))


@pytest.mark.parametrize("isa", instruction_sets()[1:])
def test_a_lower_instruction_set_gives_the_same_results(packed_weight, tmp_path, isa):
    cases = {}
    for pattern in ("2:4", "1:8x2", "2:4x4", "1:4x8", "1:4x16", "20%"):
        for value_dtype in (torch.float32, torch.float16):
            packed = packed_weight(pattern, 50, 136, value_dtype)
            cases[f"{pattern} {value_dtype}"] = [
                (x, linear(x, packed), linear(x, packed, None, "gelu"))
                for x in map(random_input, (1, 3, 40), (136,) * 3)
            ]
            torch.save(
                {"dense": packed.unpack(), "cases": cases[f"{pattern} {value_dtype}"], "pattern": pattern},
                tmp_path / f"{len(cases)}.pt",
            )
    program = """
import pathlib, sys, torch
from sparsewright._native import instruction_set
from sparsewright.core import parse_pattern
from sparsewright.kernels import linear
from sparsewright.layouts import pack
assert instruction_set() == sys.argv[2]
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
    saved = torch.load(path, weights_only=True)
    pattern = parse_pattern(saved["pattern"])
    packed = pack(saved["dense"], saved["dense"] != 0, "vector", pattern)
    for x, y, activated in saved["cases"]:
        torch.testing.assert_close(linear(x, packed), y, rtol=0, atol=5e-6)
        torch.testing.assert_close(linear(x, packed, None, "gelu"), activated, rtol=0, atol=5e-6)
print("same")
"""
    import os

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), isa],
        env={**os.environ, "SPARSEWRIGHT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "same", done.stderr


def test_an_unknown_instruction_set_is_refused_with_the_known_ones():
    import os

    done = subprocess.run(
        [sys.executable, "-c", "from sparsewright._native import instruction_set; instruction_set()"],
        env={**os.environ, "SPARSEWRIGHT_ISA": "abacus"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "abacus" in done.stderr
    assert "scalar" in done.stderr
    told = subprocess.run(
        [sys.executable, "-m", "sparsewright.cli", "doctor", "--minutes", "0.01"],
        env={**os.environ, "SPARSEWRIGHT_ISA": "abacus"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 2
    assert "Traceback" not in told.stderr
    assert "abacus" in told.stderr


KINDS = pytest.mark.parametrize("layout,value_dtype", [("vector", torch.float32), ("int8", torch.int8)])


@KINDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_or_device_changes_nothing(packed_weight, layout, value_dtype, dtype):
    packed = packed_weight("4x1@50%", 64, 48, value_dtype, layout)
    x = random_input(50, 48)
    expected = linear(x, packed)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        assert torch.equal(linear(x, packed), expected)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        assert torch.equal(linear(x, packed), expected)


@KINDS
def test_tracers_and_dispatch_modes_see_the_call(packed_weight, layout, value_dtype):
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    packed = packed_weight("4x1@50%", 64, 48, value_dtype, layout)
    x = random_input(8, 48)
    expected = linear(x, packed)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        with Watch():
            assert torch.equal(linear(x, packed), expected)
        assert any("sparsewright" in name for name in seen)
        traced = torch.jit.trace(lambda a: linear(a, packed), x, check_trace=False)
        assert torch.equal(traced(2 * x), linear(2 * x, packed))
        graph = make_fx(lambda a: linear(a, packed))(x)
        assert torch.equal(graph(2 * x), linear(2 * x, packed))


@KINDS
def test_a_pending_negation_is_resolved(packed_weight, layout, value_dtype):
    packed = packed_weight("4x1@50%", 64, 48, value_dtype, layout)
    x, bias = random_input(8, 48), random_input(64)
    assert torch.equal(linear(torch._neg_view(x), packed), linear(-x, packed))
    assert torch.equal(linear(x, packed, torch._neg_view(bias)), linear(x, packed, -bias))
