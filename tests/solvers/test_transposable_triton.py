"""The Triton kernels of the transposable solver: interpreted, compiled for GPUs, and on one where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device: not measured")


def run(arguments, cache, **environment):
    """A process of its own, because Triton chooses its interpreter when it is first imported."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {**kept, "TRITON_CACHE_DIR": str(cache), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
@needs_triton
def test_the_kernels_are_right_in_the_interpreter(tmp_path):
    cases = ["-m", "pytest", "-q", "-x", "-p", "no:xdist", "transposable_triton_cases.py"]
    done = run(cases, tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-4000:]


@needs_cuda
@needs_triton
def test_the_kernels_are_right_on_a_gpu(tmp_path):
    done = run(["-m", "pytest", "-q", "-x", "-p", "no:xdist", "transposable_triton_cases.py"], tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
@needs_triton
def test_every_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    done = run(["transposable_triton_compiled.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {tuple(line) for line in lines} == {
        (kernel, m, capability)
        for kernel in ("_sweep_tiles", "_repair_tiles")
        for m in ("5", "16")
        for capability in ("90",)
    }
