"""Triton kernels: in its interpreter on the CPU, compiled for GPUs without one, and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from sparsewright.core import KernelError
from sparsewright.kernels import linear, reference_linear, which, why_not

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device: not measured")
TOLERANCE = {torch.float32: (0, 5e-6), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}


def run(arguments, cache, **environment):
    """A process of its own, because Triton chooses its interpreter when it is first imported."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {**kept, "TRITON_CACHE_DIR": str(cache), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=900, check=False)


def assert_cases_pass(tmp_path, **environment):
    done = run(["-m", "pytest", "-q", "-x", "-p", "no:xdist", "triton_cases.py"], tmp_path, **environment)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
@needs_triton
def test_the_kernels_are_right_in_the_interpreter(tmp_path):
    assert_cases_pass(tmp_path, TRITON_INTERPRET="1")


@needs_cuda
@needs_triton
def test_the_kernels_are_right_on_a_gpu(tmp_path):
    assert_cases_pass(tmp_path)


@pytest.mark.slow
@needs_triton
def test_every_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    done = run(["triton_compiled.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert {(kernel, capability) for kernel, _, capability, _ in lines} == {
        (kernel, capability)
        for kernel in ("_few_tokens", "_lanes", "_join_splits", "_tensor_core", "_input_grad", "_weight_grad")
        for capability in ("80", "90")
    }
    assert all((kernel == "_tensor_core") == (cores == "tensor cores") for kernel, _, _, cores in lines)


def test_importing_the_package_and_multiplying_on_the_cpu_load_no_triton(tmp_path):
    program = """
import sys, torch, sparsewright as sw
mask = torch.arange(8).repeat(4, 1) % 4 < 2
packed = sw.pack(torch.ones(4, 8), mask, pattern="2:4")
sw.linear(torch.ones(2, 8), packed)
sw.why_not(packed)
assert "triton" not in sys.modules
"""
    done = run(["-c", program], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_each_kernel_says_what_it_lacks(packed_weight, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    said = why_not(packed_weight("2:4x16", 32, 64), 64)
    for kernel in ("triton_few_tokens", "triton_tensor_core", "triton_lanes"):
        assert any("CUDA device, and torch finds none" in reason for reason in said[kernel])
    assert "at most 4 tokens, got 64" in said["triton_few_tokens"][-1]
    assert "float16" in said["triton_tensor_core"][-1]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        assert why_not(packed_weight("2:4x16", 32, 64), 64)["triton_lanes"] == []
    assert which(packed_weight("2:4x16", 32, 64), 64) in ("row_lane", "token_lane")


def test_the_measured_table_may_choose_among_the_triton_kernels():
    from sparsewright.core import DispatchEntry, DispatchTable
    from sparsewright.kernels import set_dispatch_table
    from sparsewright.kernels.sparse_linear.dispatch import choose_triton

    half, single = torch.float16, torch.float32
    assert choose_triton(16, 4, 64, 0.5, half, half) == "triton_few_tokens"
    assert choose_triton(16, 5, 64, 0.5, half, half) == "triton_tensor_core"
    assert choose_triton(16, 5, 64, 0.5, single, half) == "triton_lanes"
    set_dispatch_table(DispatchTable((DispatchEntry("sparse_linear", ("token_lane", "triton_lanes")),)))
    try:
        assert choose_triton(16, 4, 64, 0.5, half, half) == "triton_lanes"
    finally:
        set_dispatch_table(None)


def test_calls_on_a_gpu_are_routed_and_refused_without_touching_one(packed_weight):
    half = torch.float16
    vector = packed_weight("2:4x4", 32, 64, half)
    semi = packed_weight("2:4", 32, 64, half, "semi_structured")
    int8 = packed_weight("2:4x4", 32, 64, torch.int8, "int8")
    with FakeTensorMode(allow_non_fake_inputs=True):
        vector, semi, int8 = (
            replace(packed, tensors={n: torch.empty_like(t, device="cuda") for n, t in packed.tensors.items()})
            for packed in (vector, semi, int8)
        )
        assert which(vector, 1) == "triton_few_tokens"
        assert which(vector, 9) == "triton_tensor_core"
        # Made, not cast or cut: torch without CUDA cannot do more with a tensor that claims to be there.
        single, bias = torch.empty(2, 5, 64, device="cuda"), torch.empty(32, device="cuda")
        x = torch.empty(2, 5, 64, device="cuda", dtype=half)
        for packed, given in ((vector, single), (vector, x), (semi, x)):
            y = linear(given, packed, bias)
            assert (y.shape, y.dtype, y.device.type) == ((2, 5, 32), given.dtype, "cuda")
        for packed, given, match in (
            (vector, torch.empty(2, 64), "one device, got x on cpu and the weight on cuda"),
            (vector, torch.empty(2, 63, device="cuda"), r"shape \(..., 64\), got \(2, 63\)"),
            (vector, torch.empty(2, 64, device="cuda", dtype=torch.float64), "got x of torch.float64"),
            (semi, single, "dtype of the values, got torch.float32 and torch.float16"),
            (int8, single, "run on the CPU, got x on cuda"),
        ):
            with pytest.raises(KernelError, match=match):
                linear(given, packed)
        with pytest.raises(KernelError, match=r"bias of shape \(32,\), got \(5,\)"):
            linear(x, vector, torch.empty(5, device="cuda"))


@needs_cuda
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "1:4x16", "16x1@10%"])
def test_a_packed_weight_on_a_gpu_runs_there_with_gradients(packed_weight, pattern, dtype):
    packed = packed_weight(pattern, 96, 384, dtype).to("cuda")
    bias = torch.randn(96, device="cuda", dtype=dtype, requires_grad=True)
    rtol, atol = TOLERANCE[dtype]
    for tokens in (1, 33, 1024):
        x = torch.randn(tokens, 384, device="cuda", dtype=dtype, requires_grad=True)
        y = linear(x, packed, bias)
        assert which(packed, tokens).startswith("triton_")
        truth = reference_linear(x.double(), packed, bias.double())
        torch.testing.assert_close(y.double(), truth, rtol=rtol, atol=atol)
        push = torch.randn_like(y)
        of_x, of_bias = torch.autograd.grad(y, (x, bias), push)
        torch.testing.assert_close(of_bias, push.sum(0))
        torch.testing.assert_close(of_x.double(), push.double() @ packed.unpack().double(), rtol=rtol, atol=10 * atol)


@needs_cuda
@needs_triton
def test_a_packed_module_moves_to_a_gpu_and_compiles_there(packed_weight):
    from sparsewright.nn import SparseTensor, as_parameter

    layer = torch.nn.Linear(64, 32)
    layer._parameters["weight"] = as_parameter(SparseTensor(packed_weight("2:4x4", 32, 64)))
    layer = layer.half().cuda()
    x = torch.randn(40, 64, device="cuda", dtype=torch.float16)
    truth = functional.linear(x.double(), layer.weight.packed.unpack().double(), layer.bias.double())
    for call in (layer, torch.compile(layer, fullgraph=True)):
        torch.testing.assert_close(call(x).double(), truth, rtol=2e-3, atol=2e-3)


@needs_cuda
def test_tensors_on_two_devices_are_refused(packed_weight):
    packed = packed_weight("2:4x4", 32, 64)
    with pytest.raises(KernelError, match="one device, got x on cuda"):
        linear(torch.randn(2, 64, device="cuda"), packed)
    with pytest.raises(KernelError, match="on the device of the weight"):
        linear(torch.randn(2, 64), packed.to("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_benchmark_measures_nothing_without_a_gpu(tmp_path):
    done = run(
        [str(HERE.parents[1] / "benchmarks" / "bench_cuda.py"), "--output", str(tmp_path / "cuda.csv")], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "no CUDA device: not measured"
    assert not (tmp_path / "cuda.csv").exists()
