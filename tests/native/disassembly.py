"""Loops of compiled kernels that multiply, and which of their instructions move vectors to or from the stack."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from native_build import run

# What a hot loop consists of, on every kind of processor that is compiled for. In kernels of bytes plain products of
# floats only serve to round inputs and to scale sums; exact solvers compare differences instead of multiplying.
PRODUCTS = {
    "exact": re.compile(r"^(v?subpd|v?subsd|fsub)"),
    "float": re.compile(r"^(v?mulps|vfmadd\w+|fmla)"),
    "int8": re.compile(r"^(vfmadd\w+|v?pdpbusd|v?pmaddubsw|fmla|sdot|smull2?)"),
}
STACK = re.compile(r"\(%rsp|\[sp\b")
FRAME = re.compile(r"\(%rbp\)|\[x29\b")  # where the function keeps its stack in it
VECTOR = re.compile(r"%[xyz]mm\d+|\b[qv]\d+\b")
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
JUMP = re.compile(r"^(j\w+|b(\.\w+)?|cbn?z|tbn?z)$")
TARGET = re.compile(r"\b([0-9a-f]+) <")


@dataclass(frozen=True)
class Instruction:
    """One line of a listing."""

    address: int
    name: str
    operands: str
    framed: bool = False

    @property
    def touches_stack(self) -> bool:
        """Whether it moves a vector register to or from the stack."""
        if not VECTOR.search(self.operands):
            return False
        return bool(STACK.search(self.operands) or (self.framed and FRAME.search(self.operands)))


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its function and what it executes."""

    function: str
    body: tuple[Instruction, ...]

    def products(self, kind: str) -> int:
        return sum(bool(PRODUCTS[kind].match(each.name)) for each in self.body)

    @property
    def spills(self) -> int:
        return sum(each.touches_stack for each in self.body)


def functions(binary: Path, objdump: str = "objdump") -> Iterator[tuple[str, list[Instruction]]]:
    """Name and instructions of every function of an object file."""
    listing = run(objdump, "-d", "-C", "--no-show-raw-insn", "-w", binary)
    name, body, framed = "", [], False
    for line in listing.stdout.splitlines():
        if begun := FUNCTION.match(line):
            if body:
                yield name, body
            name, body, framed = begun[1], [], False
        elif found := LINE.match(line):
            framed = framed or (found[2] == "mov" and found[3] in ("%rsp,%rbp", "x29, sp"))
            body.append(Instruction(int(found[1], 16), found[2], found[3], framed))
    if body:
        yield name, body


def innermost_loops(name: str, body: list[Instruction]) -> Iterator[Loop]:
    """Stretches that a jump back closes and that hold no other such stretch."""
    known = {each.address: i for i, each in enumerate(body)}
    stretches = []
    for i, each in enumerate(body):
        if JUMP.match(each.name) and (target := TARGET.search(each.operands)):
            begin = known.get(int(target[1], 16))
            if begin is not None and begin <= i:
                stretches.append((begin, i))
    for begin, end in stretches:
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in stretches):
            yield Loop(name, tuple(body[begin : end + 1]))


# Loops with fewer are not what a kernel of that kind spends its time in.
LEAST_PRODUCTS = {"float": 8, "int8": 8, "exact": 1}


def hot_loops(binary: Path, kind: str, objdump: str = "objdump") -> list[Loop]:
    """Innermost loops that a kind of kernels spends its time in, one per function and stretch of code."""
    return [
        loop
        for name, body in functions(binary, objdump)
        for loop in innermost_loops(name, body)
        if loop.products(kind) >= LEAST_PRODUCTS[kind]
    ]
