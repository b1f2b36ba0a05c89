"""The kernels of every instruction set in a program of their own: no Python, no torch, every buffer exactly as long as
it must be, under the address and undefined-behaviour sanitizers; and on processors that are only emulated."""

import os

import pytest
from native_build import HERE, INSTRUCTION_SETS, KERNELS, SANITIZED, contract_program, run, runs_here, succeed
from needed import tool

ENVIRONMENT = {
    **os.environ,
    "OMP_WAIT_POLICY": "PASSIVE",
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@pytest.fixture(scope="module")
def compiler():
    return tool(os.environ.get("CXX", "g++"))


@pytest.fixture(scope="module")
def sanitizing_compiler(compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "nothing.cpp").write_text("int main() { return 0; }\n", encoding="utf-8")
    built = run(compiler, *SANITIZED, folder / "nothing.cpp", "-o", folder / "nothing")
    if built.returncode or run(folder / "nothing", env=ENVIRONMENT).returncode:
        pytest.skip(f"{compiler} makes no programs with sanitizers here: {built.stderr.strip()[:200]}")
    return compiler


def assert_passes(*command):
    done = run(*command, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, f"{done.stdout}{done.stderr[:4000]}"
    assert ", 0 failures" in done.stdout


def test_every_kernel_file_has_a_contract():
    assert KERNELS
    missing = [kernel.contract.name for kernel in KERNELS if not kernel.contract.exists()]
    assert not missing, f"tests/native lacks {', '.join(missing)}: contract.hpp tells how to write one"


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_kernels_stay_within_their_buffers_and_keep_the_contract(name, sanitizing_compiler, tmp_path):
    isa = INSTRUCTION_SETS[name]
    if not runs_here(isa):
        pytest.skip(f"this processor does not run {name}")
    if name in ("sse41", "avx") and not os.environ.get("SPARSEWRIGHT_SLOW_TESTS"):
        pytest.skip(
            f"{name} takes a minute to compile: set SPARSEWRIGHT_SLOW_TESTS=1; its results are tested elsewhere"
        )
    assert_passes(contract_program(tmp_path, isa, sanitizing_compiler, SANITIZED), 150)


WRONG_KERNEL = """
#include "{header}"
extern "C" void sparsewright_sparse_linear_wrong(const sparsewright::LinearProblem &p) {{
    for (long i = 0; i < p.tokens * p.out; ++i) p.y[i] = {value};
}}
#include "{contract}"
"""


@pytest.mark.parametrize(
    "value,sign", [("1e9f", "FAILED"), ("p.x[(p.tokens - 1) * p.x_stride + p.in]", "heap-buffer-overflow")]
)
def test_the_program_notices_a_wrong_sum_and_a_read_past_the_end(sanitizing_compiler, tmp_path, value, sign):
    kernel = next(kernel for kernel in KERNELS if kernel.name == "sparse_linear_cpu")
    source = tmp_path / "wrong.cpp"
    header = kernel.file.parent / "problem.hpp"
    source.write_text(WRONG_KERNEL.format(header=header, value=value, contract=kernel.contract), encoding="utf-8")
    options = (*SANITIZED, "-std=c++20", "-DSPARSEWRIGHT_ISA=wrong", f"-I{HERE}")
    succeed(sanitizing_compiler, *options, source, HERE / "kernel_contract.cpp", "-o", tmp_path / "wrong")
    done = run(tmp_path / "wrong", 20, env=ENVIRONMENT, timeout=60)
    assert done.returncode != 0
    assert sign in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name,processor", [("neon", "cortex-a72"), ("neon_dot", "max")])
def test_arm_kernels_keep_the_contract_on_an_emulated_processor(name, processor, tmp_path):
    compiler = tool("aarch64-linux-gnu-g++")
    emulator = tool("qemu-aarch64-static", "qemu-aarch64")
    program = contract_program(tmp_path, INSTRUCTION_SETS[name], compiler, ("-O2",), ("-static",))
    sets = run(emulator, "-cpu", processor, program, "--sets").stdout.split()
    assert sets == (["neon_dot"] if processor == "max" else []) + ["neon", "scalar"]
    assert_passes(emulator, "-cpu", processor, program, 150)


@pytest.mark.slow
@pytest.mark.parametrize("name,processor", [("sse41", "Nehalem"), ("avx", "SandyBridge")])
def test_kernels_for_old_processors_use_nothing_newer(name, processor, compiler, tmp_path):
    emulator = tool("qemu-x86_64-static", "qemu-x86_64")
    program = contract_program(tmp_path, INSTRUCTION_SETS[name], compiler, ("-O1",), ("-static",))
    assert_passes(emulator, "-cpu", processor, program, 50)


def test_every_processor_gets_the_best_set_that_it_runs(compiler, tmp_path):
    emulator = tool("qemu-x86_64-static", "qemu-x86_64")
    program = tmp_path / "sets"
    succeed(compiler, "-std=c++20", "-static", HERE / "kernel_contract.cpp", "-o", program)
    best = {
        "qemu64": "scalar",
        "Nehalem": "sse41",
        "SandyBridge": "avx",
        "IvyBridge": "avx",
        "Haswell,-fma": "avx",
        "Haswell,-f16c": "avx",
        "Haswell": "avx2",
        # The system must save long registers too.
        "Haswell,-xsave": "sse41",
    }
    for processor, name in best.items():
        done = run(emulator, "-cpu", processor, program, "--sets")
        assert done.stdout.split()[0] == name, f"{processor}: {done.stdout}{done.stderr}"
