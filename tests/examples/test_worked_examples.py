"""The examples run on a CPU, print what they claim, and stay short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# Lines of the same example in STen (spcl/sten at 9110245), counted without blanks and comments.
STEN = {
    "semi_structured_training": 85,
    "marlin_like": 57,
    "spqr_like": 126,
    "low_rank_plus_sparse": 266,
}


def lines_of(name: str) -> int:
    """Lines that are neither blank nor a comment; docstrings count."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


def output_of(name: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w:])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w:])", text)]


@pytest.mark.parametrize("name", STEN)
def test_an_example_is_shorter_than_the_one_of_sten(name: str) -> None:
    assert lines_of(name) < STEN[name]


def test_training_at_2_of_4_is_as_good_as_dense_and_packs_for_the_cpu() -> None:
    dense, sparse, dense_bytes, sparse_bytes, error = numbers(output_of("semi_structured_training").replace(" 2:4", ""))
    assert dense > 0.9
    assert sparse > dense - 0.05
    assert sparse_bytes < 0.54 * dense_bytes
    assert error < 1e-4


def test_int4_at_2_of_4_takes_a_tenth_of_the_bytes() -> None:
    sparse_bytes, dense_bytes, error = numbers(output_of("marlin_like").replace("int4", ""))
    assert sparse_bytes < dense_bytes / 10
    assert error < 0.1


def test_outliers_kept_exactly_halve_the_error_of_low_bits_and_can_be_trained() -> None:
    bits, error, without, _, trained = numbers(output_of("spqr_like"))
    assert bits < 5.2
    assert error < 0.7 * without
    assert trained < error


def test_low_rank_plus_sparse_stores_a_quarter_and_learns_a_changed_task() -> None:
    stored, dense, error, before, after = numbers(output_of("low_rank_plus_sparse"))
    assert stored < 0.26 * dense
    assert error < 0.1
    assert after < before / 3


@pytest.mark.slow
def test_a_layout_a_sparsifier_and_an_operator_of_ones_own_take_at_most_40_lines() -> None:
    text = (EXAMPLES / "own_layout.py").read_text(encoding="utf-8")
    assert sum(1 for line in text.splitlines() if line.strip()) <= 40
    assert "fullgraph=True" in text
    printed = output_of("own_layout")
    kept = re.search(r"gradient of (\d+) values", printed)
    assert kept
    assert 0 < int(kept[1]) < 64 * 32
    assert "layout='triplets'" in printed
