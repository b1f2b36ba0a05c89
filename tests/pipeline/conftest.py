"""A small recipe with a fixed profile, so that no measurement decides anything."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsewright.hardware import CostRow, Profile

HERE = Path(__file__).parent
SHAPES = ((128, 64), (128, 128))
PATTERNS = {"2:4": 0.7, "2:4x4": 0.55, "4x1@50%": 0.5, "4x1@25%": 0.3}


def fixed_profile(path: Path) -> Path:
    """A profile file in which every pattern has a fixed ratio to dense."""
    rows = []
    for shape in SHAPES:
        for tokens in (1, 8):
            dense = 1e-9 * shape[0] * shape[1] * tokens
            for pattern, ratio in {"dense": 1.0, **PATTERNS}.items():
                seconds = dense * ratio
                rows.append(CostRow(shape, pattern, "fp32", tokens, seconds, dense, seconds, seconds, 5))
    profile = Profile({"cpu": "fixed"}, "0" * 64, "fixed", "2026-01-01T00:00:00+00:00", 1, tuple(rows))
    profile.save(path)
    return path


def recipe_data(profile: Path, **changes: Any) -> dict[str, Any]:
    """The small recipe as plain data."""
    return {
        "model": "python:small_model:build",
        "task": "python:small_model:make_task",
        "target": str(profile),
        "budget": {"max_quality_drop": 0.03},
        "sparsify": {"method": "sparsegpt", "patterns": list(PATTERNS), "value_dtypes": ["fp32"]},
        "search": {"evaluations": 3},
        "recover": {"steps": 40},
        "measure": {"batches": [1, 8], "rivals": "none", "seconds": 0.5},
        **changes,
    }


@pytest.fixture
def small_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small recipe, with changes, and returns its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        data = recipe_data(fixed_profile(tmp_path / "fixed.json"), **changes)
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def start_run(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    """The run in a process of its own, one thread, as a user would start it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "sparsewright.cli", "run", str(recipe), "--folder", str(folder)]
    return subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lasting(folder: Path) -> dict[str, Any]:
    """What must be the same on every rerun: plan, bundle and results without the fields under `measured`."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("measured")
    return {
        "plan": (folder / "plan.json").read_text(),
        "bundle": (folder / "model.safetensors").read_bytes(),
        "results": results,
    }
