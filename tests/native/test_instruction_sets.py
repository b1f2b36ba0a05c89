"""Which instruction set a process uses, and that the page about them is true."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from native_build import INSTRUCTION_SETS, KERNELS, ROOT, runs_here

from sparsewright._native import instruction_set, instruction_sets

sys.path.insert(0, str(ROOT / "scripts"))
import make_instruction_table as instruction_table

TELL = """
from sparsewright.core import MachineError, instruction_set, vector_lanes
try:
    print(instruction_set(), vector_lanes())
except MachineError as error:
    print(error)
"""
LANES = {"avx512_vnni": 16, "avx512": 16, "avx_vnni": 8, "avx2": 8, "avx": 8, "sse41": 4, "scalar": 4}


def told_with(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        env={**os.environ, "SPARSEWRIGHT_ISA": name},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", instruction_sets())
def test_each_set_that_runs_here_can_be_forced(name):
    assert told_with(name) == f"{name} {LANES.get(name, 4)}"


def test_an_empty_name_means_the_best():
    assert told_with("").split()[0] == instruction_sets()[0]


@pytest.mark.parametrize("name", ["abacus", "AVX2", "neon" if "neon" not in instruction_sets() else "avx2"])
def test_a_name_that_does_not_run_here_is_refused_in_one_sentence_with_those_that_do(name):
    told = told_with(name)
    assert told.startswith(f"SPARSEWRIGHT_ISA={name} names no instruction set that runs here: ")
    assert ", ".join(instruction_sets()) in told
    assert "\n" not in told


def test_sets_are_told_best_first_and_the_portable_one_is_always_there():
    names = [choice.name for choice in instruction_table.choices()]
    assert list(instruction_sets()) == [name for name in names if name in instruction_sets()]
    assert instruction_sets()[-1] == "scalar"
    assert instruction_set() in instruction_sets()


def test_each_object_of_a_set_is_compiled_and_each_compiled_object_belongs_to_a_set():
    used = {(choice.floats, kind) for choice in instruction_table.choices() for kind in ("float", "exact")}
    used |= {(choice.ints, "int8") for choice in instruction_table.choices()}
    assert used == {(isa.name, kind) for isa in INSTRUCTION_SETS.values() for kind in isa.kinds}
    assert {kernel.kind for kernel in KERNELS} == {"float", "exact", "int8"}
    assert runs_here(INSTRUCTION_SETS["portable"])


def test_the_page_is_what_the_record_says():
    assert instruction_table.PAGE.read_text(encoding="utf-8") == instruction_table.page(), (
        "run scripts/make_instruction_table.py"
    )


def test_a_set_is_only_called_executed_where_the_record_has_times():
    for line in instruction_table.read_record():
        assert (line.how == "executed") == (line.float_us != "" and line.int8_us != "")
        assert int(line.calls) > 0
    assert Path(instruction_table.RECORD).exists()
