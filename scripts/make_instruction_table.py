"""Write the table of docs/instruction_sets.md: which instruction sets there are, and where each was tried.

What was tried is kept in benchmarks/results/instruction_sets.csv, a line per instruction set and machine. `--record`
tries every set that this machine runs or can emulate, or those named behind it, and replaces their lines; `--check`
writes nothing, its exit code tells whether the page is up to date.
"""

import csv
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import markdown_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "instruction_sets.md"
RECORD = ROOT / "benchmarks" / "results" / "instruction_sets.csv"
BEGIN, END = "<!-- begin: written by scripts/make_instruction_table.py -->", "<!-- end -->"

# Emulated processors, for sets of another kind of processor than the one at hand.
EMULATED = {"neon": "cortex-a72", "neon_dot": "max"}
ROUNDS = 300

SPEED = """
import time, torch
from sparsewright.kernels import linear
from sparsewright.layouts import pack
torch.set_num_threads(1)
weight, x = torch.randn(768, 768), torch.randn(128, 768)
mask = torch.zeros(768, 768, dtype=torch.bool)
mask[:, ::4] = True
for layout in ("vector", "int8"):
    packed, best = pack(weight * mask, mask, layout, "1:4x4"), 1.0
    for _ in range(60):
        start = time.thread_time()
        linear(x, packed)
        best = min(best, time.thread_time() - start)
    print(round(best * 1e6))
"""


@dataclass(frozen=True)
class Choice:
    """One entry of SPARSEWRIGHT_SETS: a name of SPARSEWRIGHT_ISA and the objects that it uses."""

    name: str
    floats: str
    ints: str


@dataclass(frozen=True)
class Tried:
    """One line of the record.

    Attributes:
        set: name of the instruction set.
        how: `executed`, or `emulated`.
        machine: processor, or emulator and emulated processor.
        calls: of kernels in the contract program, all of them right.
        float_us, int8_us: thread CPU time of 128 tokens through a 768 x 768 weight at 1:4x4; empty where emulated.
    """

    set: str
    how: str
    machine: str
    calls: str
    float_us: str
    int8_us: str
    sparsewright: str
    date: str


def choices() -> list[Choice]:
    """Every set of every kind of processor, best first, the portable one last."""
    text = (ROOT / "src" / "sparsewright" / "_native" / "instruction_sets.hpp").read_text(encoding="utf-8")
    found = re.findall(r"\bSET\((\w+), .*, (\w+), (\w+)\)", text)
    unique = {name: Choice(name, floats, ints) for name, floats, ints in found if name != "name"}
    return sorted(unique.values(), key=lambda choice: choice.name == "scalar")


def read_record() -> list[Tried]:
    if not RECORD.exists():
        return []
    with RECORD.open(encoding="utf-8", newline="") as file:
        return [Tried(**row) for row in csv.DictReader(file)]


def table() -> str:
    """The table in Markdown, from the record and the sources only: the same on every machine."""
    sys.path.insert(0, str(ROOT / "tests" / "native"))
    from native_build import INSTRUCTION_SETS

    record = read_record()
    head = ("`SPARSEWRIGHT_ISA`", "processors", "compiler flags: float kernels; int8 kernels", "contract")
    head += ("float speed", "int8 speed")
    lines = []
    for choice in choices():
        floats, ints = INSTRUCTION_SETS[choice.floats], INSTRUCTION_SETS[choice.ints]
        flags = [_shown(floats.flags), _shown(ints.flags)]
        tried = [line for line in record if line.set == choice.name]
        contract = "; ".join(f"{line.how} on {line.machine}, {line.calls} calls, {line.date}" for line in tried)
        executed = next((line for line in tried if line.how == "executed"), None)
        lines.append(
            (
                f"`{choice.name}`",
                floats.processor,
                "; ".join(dict.fromkeys(flags)),
                contract or "compiled only",
                _speed(executed, record, "float_us"),
                _speed(executed, record, "int8_us"),
            )
        )
    return markdown_table.table(head, lines)


def _shown(flags: tuple[str, ...]) -> str:
    """What decides which instructions there are; tuning does not."""
    return (
        " ".join(f"`{flag}`" for flag in flags if flag.startswith(("-mavx", "-msse", "-mfma", "-mf16c", "-march")))
        or "none"
    )


def _speed(line: Tried | None, record: list[Tried], column: str) -> str:
    """Against the fastest set of the same machine."""
    if line is None:
        return "not measured"
    best = min(int(getattr(other, column)) for other in record if other.machine == line.machine)
    return f"{best / int(getattr(line, column)):.2f}"


def page() -> str:
    """The page with the table of today."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def record(names: list[str]) -> None:
    """Try these sets, or all, that run here and, where the tools are there, those that can be emulated."""
    sys.path.insert(0, str(ROOT / "tests" / "native"))
    from native_build import INSTRUCTION_SETS, contract_program, run

    from sparsewright._native import instruction_sets
    from sparsewright.hardware.fingerprint import this_machine

    def calls(choice: Choice, compiler: str, link: tuple[str, ...], before: tuple[str, ...]) -> str:
        total = 0
        for name in dict.fromkeys((choice.floats, choice.ints)):
            with tempfile.TemporaryDirectory() as folder:
                program = contract_program(Path(folder), INSTRUCTION_SETS[name], compiler, ("-O3",), link)
                done = run(*before, program, ROUNDS)
                if done.returncode:
                    raise SystemExit(f"{choice.name} breaks its contract:\n{done.stdout}{done.stderr}")
                total += sum(map(int, re.findall(r": (\d+) calls", done.stdout)))
        return str(total)

    here, made, today = this_machine().cpu, version("sparsewright"), datetime.date.today().isoformat()
    kept, fresh = read_record(), []
    for choice in choices():
        if names and choice.name not in names:
            continue
        if choice.name in instruction_sets():
            environment = {**os.environ, "SPARSEWRIGHT_ISA": choice.name}
            command = [sys.executable, "-c", SPEED]
            timed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
            compiler = os.environ.get("CXX", "g++")
            fresh.append(Tried(choice.name, "executed", here, calls(choice, compiler, (), ()), *timed, made, today))
        elif choice.name in EMULATED and platform.machine() == "x86_64":
            compiler = shutil.which("aarch64-linux-gnu-g++")
            emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
            if compiler and emulator:
                processor = EMULATED[choice.name]
                count = calls(choice, compiler, ("-static",), (emulator, "-cpu", processor))
                name = f"qemu-aarch64 -cpu {processor}"
                fresh.append(Tried(choice.name, "emulated", name, count, "", "", made, today))
        print(choice.name, "tried" if fresh and fresh[-1].set == choice.name else "not tried", flush=True)
    replaced = {(line.set, line.machine) for line in fresh}
    lines = [line for line in kept if (line.set, line.machine) not in replaced] + fresh
    with RECORD.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Tried)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)


def main() -> int:
    """Write the page, or compare it."""
    if "--record" in sys.argv[1:]:
        record([word for word in sys.argv[1:] if not word.startswith("--")])
    wanted = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == wanted else 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
