"""Loops that multiply keep their sums in registers: where the compiler runs out, speed falls by half unnoticed."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from disassembly import Instruction, functions, hot_loops, innermost_loops
from native_build import INSTRUCTION_SETS, KERNELS, NATIVE, ROOT, InstructionSet, Kernel, succeed
from needed import tool


@dataclass(frozen=True)
class Allowance:
    """Vector moves to or from the stack that loops of some functions may have, and why."""

    sets: tuple[str, ...]
    kernel: str  # pattern of names
    function: str  # pattern within names
    most: int
    why: str


X86 = ("sse41", "avx", "avx2", "avx512")
OLD = ("sse41", "avx")
ARM = ("neon", "neon_dot")

# No sums of a set with fused multiply-add on x86: those are the ones whose speed is promised.
ALLOWED = (
    Allowance(
        (*X86, "avx_vnni", "avx512_vnni", *ARM),
        "sparse_linear_(cpu|nmg|int8|strips)",
        r"(activate|write_activated)_rows<",
        32,
        "an activation has more constants than there are registers, and reads some from memory; it has no sums, "
        "waits for a division, and runs once per output.",
    ),
    Allowance(
        OLD,
        "sparse_(linear|conv)_cpu",
        r"accumulate<\d+, \d+, 3>",
        2,
        "without a fused multiply-add a product needs a register of its own before it is added: one more than there is "
        "beside 12 sums, 3 inputs and a weight. Two loads in 12 products, in the shade of the additions.",
    ),
    Allowance(
        OLD,
        "sparse_linear_nmg",
        r"accumulate_nmg<1, \d, \d, ",
        2,
        "as above: a product needs a register of its own beside 12 sums.",
    ),
    Allowance(
        OLD,
        "sparse_linear_cpu",
        r"<\d+, .*(Half|Byte)>",
        40,
        "without F16C a half, and without AVX2 a byte, is decoded by a dozen instructions, whose constants take "
        "registers; decoding, not the moves, is what these loops wait for. Float values are as fast as ever there.",
    ),
    Allowance(
        ARM,
        "sparse_linear_int8",
        r"single_int8_token",
        30,
        "one token by vectors of four floats has 16 sums; reading the weights is what it waits for.",
    ),
    Allowance(
        ("neon",),
        "sparse_(linear|conv)_cpu",
        r"accumulate<1, 8, 3>",
        8,
        "24 sums, 3 inputs and weights that the compiler reads ahead: not measured on such a processor yet.",
    ),
    Allowance(
        ("neon",),
        "sparse_linear_cpu",
        r"<\d+, .*Byte>",
        8,
        "bytes of a vector are decoded ahead of their products: not measured on such a processor yet.",
    ),
    Allowance(
        ("neon",),
        "sparse_linear_nmg",
        r"accumulate_nmg<",
        10,
        "16 to 24 sums and weights that the compiler reads ahead: not measured on such a processor yet.",
    ),
    Allowance(
        ("neon",),
        "sparse_linear_int8",
        r"multiply<4, ",
        6,
        "without the dot product four instructions multiply, and the compiler reads ahead; not measured yet.",
    ),
    Allowance(
        (*X86, "portable", *ARM),
        "solvers_transposable",
        r"solve_(square|fours)<|load_square|write_certificate|finish_tile|solve_any|start_prices|order|trace",
        4000,
        "a sweep holds no sums: its tile lies on the stack, and it sorts as many values as there are registers.",
    ),
)


def allowed(isa: InstructionSet, kernel: Kernel, function: str) -> int:
    fitting = [
        a.most
        for a in ALLOWED
        if isa.name in a.sets and re.fullmatch(a.kernel, kernel.name) and re.search(a.function, function)
    ]
    return max(fitting, default=0)


def object_of(kernel: Kernel, isa: InstructionSet, folder: Path, compiler: str) -> Path:
    """The object that the build made, if it is newer than what it is made of; else one compiled now."""
    if "aarch64" not in compiler:
        pattern = f"*/CMakeFiles/{kernel.name}_{isa.name}.dir/**/{kernel.file.name}.o"
        sources = [ROOT / "CMakeLists.txt", *NATIVE.glob("*.*pp"), NATIVE / "instruction_sets.txt"]
        newest = max(path.stat().st_mtime for path in [*sources, *kernel.file.parent.glob("*.*pp")])
        for built in sorted((ROOT / "build").glob(pattern)):
            if built.stat().st_mtime >= newest:
                return built
    made = folder / f"{kernel.name}_{isa.name}.o"
    flags = ("-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-w", *kernel.compile_flags(isa))
    succeed(compiler, *flags, "-c", kernel.file, "-o", made)
    return made


def assert_no_spills(kernel: Kernel, isa: InstructionSet, binary: Path, objdump: str) -> None:
    loops = hot_loops(binary, kernel.kind, objdump)
    assert loops, f"{binary} has no loop that multiplies: the patterns of disassembly.py fit it no more"
    spilling = [
        f"{loop.function.replace('(anonymous namespace)::', '')}: {loop.spills} moves to or from the stack among "
        f"{loop.products(kernel.kind)} products"
        for loop in loops
        if loop.spills > allowed(isa, kernel, loop.function)
    ]
    assert not spilling, f"{kernel.name}, {isa.name}:\n" + "\n".join(spilling)


def of_processor(name: str) -> list[tuple[Kernel, InstructionSet]]:
    return [
        (kernel, isa)
        for kernel in KERNELS
        for isa in INSTRUCTION_SETS.values()
        if kernel.kind in isa.kinds and isa.processor == name
    ]


def name_of(value: object) -> str:
    return str(getattr(value, "name", value))


@pytest.mark.parametrize("kernel,isa", of_processor("x86_64"), ids=name_of)
def test_hot_loops_keep_their_sums_in_registers(kernel, isa, tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the compiler here makes code for another processor")
    tool("objdump")
    assert_no_spills(kernel, isa, object_of(kernel, isa, tmp_path, tool("g++")), "objdump")


@pytest.mark.slow
@pytest.mark.parametrize("kernel,isa", of_processor("aarch64"), ids=name_of)
def test_hot_loops_of_arm_keep_their_sums_in_registers(kernel, isa, tmp_path):
    compiler = tool("aarch64-linux-gnu-g++")
    binary = object_of(kernel, isa, tmp_path, compiler)
    assert_no_spills(kernel, isa, binary, tool("aarch64-linux-gnu-objdump"))


TOO_MANY_SUMS = """
#include <immintrin.h>
void spill(const float *x, const float *w, float *y, long n) {
    __m256 sum[20];
    for (int i = 0; i < 20; ++i) sum[i] = _mm256_setzero_ps();
    for (long k = 0; k < n; ++k)
#pragma GCC unroll 20
        for (int i = 0; i < 20; ++i)
            sum[i] = _mm256_fmadd_ps(_mm256_set1_ps(w[k]), _mm256_loadu_ps(x + 8 * (20 * k + i)), sum[i]);
    for (int i = 0; i < 20; ++i) _mm256_storeu_ps(y + 8 * i, sum[i]);
}
"""


def test_a_loop_with_more_sums_than_registers_is_noticed(tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the example is one for x86-64")
    compiler = tool("g++")
    for count, spills in ((20, True), (8, False)):
        source = tmp_path / "spill.cpp"
        source.write_text(TOO_MANY_SUMS.replace("20", str(count)), encoding="utf-8")
        succeed(compiler, "-O3", "-mavx2", "-mfma", "-c", source, "-o", tmp_path / "spill.o")
        (loop,) = hot_loops(tmp_path / "spill.o", "float")
        assert loop.products("float") == count
        assert (loop.spills > 0) == spills


def test_only_the_innermost_loops_are_looked_at():
    body = [
        Instruction(0, "xor", "%eax,%eax"),
        Instruction(2, "vmovaps", "0x10(%rsp),%ymm0"),
        Instruction(8, "vfmadd231ps", "%ymm0,%ymm1,%ymm2"),
        Instruction(12, "jne", "8 <f+0x8>"),
        Instruction(14, "jne", "2 <f+0x2>"),
        Instruction(16, "ret", ""),
    ]
    (loop,) = innermost_loops("f", body)
    assert [each.address for each in loop.body] == [8, 12]
    assert loop.products("float") == 1
    assert loop.spills == 0
    assert body[1].touches_stack
    assert Instruction(0, "vmovaps", "-0x40(%rbp),%zmm0", framed=True).touches_stack
    assert not Instruction(0, "vmovaps", "0x40(%rbp),%zmm0").touches_stack
    assert not Instruction(0, "mov", "0x40(%rsp),%rax").touches_stack


def test_functions_are_told_apart(tmp_path):
    (tmp_path / "two.cpp").write_text("int one() { return 1; }\nint two() { return 2; }\n", encoding="utf-8")
    succeed(tool("g++"), "-O1", "-c", tmp_path / "two.cpp", "-o", tmp_path / "two.o")
    assert [name for name, _ in functions(tmp_path / "two.o")] == ["one()", "two()"]
