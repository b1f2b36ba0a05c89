"""Torch's profiler and flop counter see packed layers, and count what is kept."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import sparsewright as sw
from sparsewright.kernels import conv2d
from sparsewright.solvers import solve_mask

TOKENS, IN, OUT = 10, 64, 48
# Pattern, value dtype, operator.
LAYERS = [
    ("2:4", torch.float32, "linear"),
    ("2:4x4", torch.float32, "linear"),
    ("16x1@25%", torch.float16, "linear"),
    ("1:4", torch.int8, "linear"),
    ("1:4x4", torch.int8, "int8_linear"),
    ("3:6:2", torch.float32, "nmg_linear"),
]


def layer(pattern: str, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(IN, OUT).requires_grad_(False)
    mask = solve_mask(made.weight.abs(), pattern)
    packed = sw.pack(made.weight, mask, pattern=pattern, value_dtype=dtype)
    made._parameters["weight"] = sw.nn.as_parameter(sw.SparseTensor(packed))
    return made


@pytest.mark.parametrize(("pattern", "dtype", "operator"), LAYERS)
@pytest.mark.parametrize("grad", [False, True])
def test_a_flop_counter_counts_two_for_every_kept_weight_and_token(
    pattern: str, dtype: torch.dtype, operator: str, grad: bool
) -> None:
    packed, x = layer(pattern, dtype), torch.randn(2, TOKENS // 2, IN)
    # The quick call is ready, so that the counter has something to miss.
    expected = packed(x)
    packed(x)
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        y = packed(x)
    kept = round(IN * OUT * sw.parse_pattern(pattern).density)
    assert counter.get_flop_counts()["Global"] == {getattr(torch.ops.sparsewright, operator): 2 * TOKENS * kept}
    torch.testing.assert_close(y, expected)


def test_the_gradient_of_a_packed_layer_is_counted_too() -> None:
    packed, x = layer("2:4x4"), torch.randn(TOKENS, IN, requires_grad=True)
    sw.train_packed_(packed)
    with FlopCounterMode(display=False) as counter:
        packed(x).sum().backward()
    once = 2 * TOKENS * IN * OUT // 2
    ops = torch.ops.sparsewright
    wanted = (ops.linear, ops.linear_input_grad, ops.linear_weight_grad)
    assert counter.get_flop_counts()["Global"] == dict.fromkeys(wanted, once)


def test_a_packed_convolution_is_counted_at_its_output_pixels() -> None:
    weight = torch.randn(16, 8 * 9)
    packed = sw.pack(weight, solve_mask(weight.abs(), "4x1@50%"), pattern="4x1@50%")
    x = torch.randn(3, 8, 10, 12, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        conv2d(x, packed, kernel_size=3, stride=2).sum().backward()
    once = 2 * 3 * (4 * 5) * 16 * 36
    assert set(counter.get_flop_counts()["Global"].values()) == {once}
    assert counter.get_total_flops() == 2 * once


def test_dense_runs_on_request_count_as_dense() -> None:
    weight = torch.randn(OUT, IN)
    packed = sw.pack(weight, weight > 0, "bitmask")
    with FlopCounterMode(display=False) as counter:
        sw.linear(torch.randn(TOKENS, IN), packed, on_missing="dense")
    assert counter.get_total_flops() == 2 * TOKENS * IN * OUT


@pytest.mark.parametrize(("pattern", "dtype", "operator"), LAYERS)
def test_the_profiler_sees_the_operator_of_a_packed_layer(pattern: str, dtype: torch.dtype, operator: str) -> None:
    packed, x = layer(pattern, dtype), torch.randn(TOKENS, IN)
    with torch.inference_mode():
        expected = packed(x)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            y = packed(x)
        again = packed(x)
    assert {row.key: row.count for row in seen.key_averages()}[f"sparsewright::{operator}"] == 1
    torch.testing.assert_close(y, expected)
    assert torch.equal(again, expected)


def test_the_profiler_sees_a_packed_convolution() -> None:
    weight = torch.randn(16, 8 * 9)
    packed = sw.pack(weight, solve_mask(weight.abs(), "4x1@50%"), pattern="4x1@50%")
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.inference_mode():
        conv2d(torch.randn(1, 8, 10, 12), packed, kernel_size=3)
    assert "sparsewright::conv2d" in {row.key for row in seen.key_averages()}


def test_a_counter_that_is_imported_last_counts_at_once_and_the_package_does_not_import_it() -> None:
    code = """
import sys, torch, sparsewright as sw
weight = torch.randn(32, 64)
packed = sw.pack(weight, sw.solve_mask(weight.abs(), "2:4"))
sw.linear(torch.randn(4, 64), packed)
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
for mode in (FlopCounterMode(display=False), FlopCounterMode(display=False)):
    with mode:
        sw.linear(torch.randn(4, 64), packed)
    assert mode.get_total_flops() == 2 * 4 * 32 * 32, mode.get_flop_counts()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
