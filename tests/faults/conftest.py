"""A small recipe with a fixed profile, and good files to spoil."""

from pathlib import Path

import pytest
import yaml

from sparsewright.hardware import CostRow, Profile

PATTERNS = {"2:4": 0.7, "4x1@50%": 0.5}


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    """A folder with `recipe.yaml` for the small model and its profile."""
    folder = tmp_path / "seed"
    folder.mkdir()
    rows = []
    for shape in ((128, 64), (128, 128)):
        for tokens in (1, 8):
            dense = 1e-9 * shape[0] * shape[1] * tokens
            for pattern, ratio in {"dense": 1.0, **PATTERNS}.items():
                seconds = dense * ratio
                rows.append(CostRow(shape, pattern, "fp32", tokens, seconds, dense, seconds, seconds, 5))
    created = "2026-01-01T00:00:00+00:00"
    Profile({"cpu": "fixed"}, "0" * 64, "fixed", created, 1, tuple(rows)).save(folder / "fixed.json")
    recipe = {
        "model": "python:small_model:build",
        "task": "python:small_model:make_task",
        "target": "fixed.json",
        "run_folder": "run",
        "budget": {"max_quality_drop": 0.05},
        "sparsify": {"patterns": list(PATTERNS), "value_dtypes": ["fp32"]},
        "search": {"evaluations": 1},
        "recover": {"steps": 3},
        "measure": {"batches": [1], "rivals": "none", "seconds": 0.2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty folder to mount a little disk on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder
