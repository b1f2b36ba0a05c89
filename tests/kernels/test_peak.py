"""The peak loop counts what it does."""

import json
import os
import subprocess
import sys

import pytest

from sparsewright._native import fma_peak, instruction_sets


def test_operations_grow_with_the_rounds() -> None:
    assert fma_peak(0) == 0
    assert fma_peak(1) > 0
    assert fma_peak(1000) == 1000 * fma_peak(1)


@pytest.mark.parametrize("name", instruction_sets())
def test_every_instruction_set_fills_its_registers(name: str) -> None:
    """Two operations a lane, on 24 or 12 sums: 16 lanes of AVX-512, 8 of AVX, 4 of others."""
    code = "import json; from sparsewright._native import fma_peak; print(json.dumps(fma_peak(1)))"
    environment = {**os.environ, "SPARSEWRIGHT_ISA": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    wide = {"avx512": 2 * 24 * 16, "avx": 2 * 12 * 8}
    expected = next((count for start, count in wide.items() if name.startswith(start)), 2 * 12 * 4)
    assert json.loads(done.stdout) == expected
