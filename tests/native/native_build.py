"""What the native library is made of, read from where CMake reads it, and how to compile parts of it for a check."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NATIVE = ROOT / "src" / "sparsewright" / "_native"
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")

# Nothing is optimised away, so each access that the source tells of is checked; and it compiles fastest.
SANITIZED = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes")


@dataclass(frozen=True)
class InstructionSet:
    """One line of instruction_sets.txt."""

    name: str
    processor: str
    kinds: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """One `add_kernels` line of CMakeLists.txt."""

    file: Path
    kind: str

    @property
    def name(self) -> str:
        return f"{self.file.parent.name}_{self.file.stem}"

    @property
    def contract(self) -> Path:
        return HERE / f"{self.name}_contract.cpp"

    @property
    def contraction(self) -> str:
        found = re.search(rf"^set\(contract_{self.kind} (\S+)\)", CMAKE, re.MULTILINE)
        assert found, f"CMakeLists.txt sets no contract_{self.kind}"
        return found[1]

    def compile_flags(self, isa: InstructionSet) -> list[str]:
        """As CMake gives them, but for optimisation."""
        return ["-fno-exceptions", self.contraction, *isa.flags, f"-DSPARSEWRIGHT_ISA={isa.name}"]


def _instruction_sets() -> dict[str, InstructionSet]:
    lines = (NATIVE / "instruction_sets.txt").read_text(encoding="utf-8").splitlines()
    rows = [[field.strip() for field in line.split("|")] for line in lines if line and not line.startswith("#")]
    return {
        name: InstructionSet(name, processor, tuple(kinds.split()), tuple(flags.split()))
        for name, processor, kinds, flags in rows
    }


INSTRUCTION_SETS = _instruction_sets()
KERNELS = [Kernel(ROOT / file, kind) for file, kind in re.findall(r"^add_kernels\((\S+) (\w+)\)", CMAKE, re.MULTILINE)]


def runs_here(isa: InstructionSet) -> bool:
    """Whether this processor runs the kernels of the set."""
    from sparsewright._native import instruction_sets

    return isa.name in {"portable" if name == "scalar" else name for name in instruction_sets()}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end, output kept as text."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def succeed(*command: object) -> None:
    done = run(*command, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def contract_program(
    folder: Path, isa: InstructionSet, compiler: str, options: tuple[str, ...], link: tuple[str, ...] = ()
) -> Path:
    """Compile and link the contract program with every kernel of one instruction set.

    Args:
        folder: where everything is written.
        isa: the set.
        compiler: a C++ compiler; may be a cross-compiler.
        options: how kernels are compiled, beside what the set needs.
        link: further options of the last step.
    """
    kernels = [kernel for kernel in KERNELS if kernel.kind in isa.kinds]
    name = f"-DSPARSEWRIGHT_ISA={isa.name}"
    base = [compiler, "-std=c++20", "-fopenmp", *WARNINGS]
    jobs = [
        [*base, *options, "-c", NATIVE / "parallel.cpp"],
        [*base, "-O2", "-c", HERE / "kernel_contract.cpp"],
        *([*base, *options, *kernel.compile_flags(isa), "-c", kernel.file] for kernel in kernels),
        *([*base, "-O1", "-ffp-contract=off", name, "-c", kernel.contract] for kernel in kernels),
    ]
    objects = [folder / f"{i}.o" for i in range(len(jobs))]
    with ThreadPoolExecutor(2) as pool:
        # The longest first would be no faster: one kernel file takes most of the time.
        list(pool.map(lambda job: succeed(*job[0], "-o", job[1]), zip(jobs, objects)))
    program = folder / "kernel_contract"
    succeed(compiler, "-fopenmp", *options, *link, *objects, "-o", program)
    return program
