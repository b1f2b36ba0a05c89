"""A small run: the validation interval is the paired bootstrap one, windows are recorded, every bound is judged."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsewright.hardware import package_counters
from sparsewright.pipeline import run
from sparsewright.pipeline.quality import bootstrap_interval


def test_a_run_draws_its_interval_from_items_and_records_windows(
    small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = {"max_quality_drop": 0.03, "size_bytes": 40_000_000, "worst_slice_drop": 0.5}
    measure = {"batches": [1, 8], "rivals": "none", "seconds": 0.3, "energy_seconds": 0.05}
    recipe = small_recipe(budget=budget, measure=measure, recover={"steps": 10})
    # The recipe's model is a module of this folder, for this process and the fresh one that verifies.
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    run(recipe, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())

    validation = results["quality"]["validation"]
    kind = results["bytes"]["dense_tensors"]
    stages = tmp_path / "run" / "stages"
    dense, ours = (np.load(stages / f"{name}-validation.items.npy") for name in ("dense", f"bundle-{kind}"))
    assert validation["interval"] == bootstrap_interval(dense - ours, results["recipe"]["seed"])
    assert validation["drop"] == pytest.approx((dense - ours).mean())
    assert validation["interval"][0] <= validation["drop"] <= validation["interval"][1]

    assert all(isinstance(row["inside_budget"], bool) for row in results["measured"]["table"])
    windows = results["measured"]["energy_windows"]
    if package_counters() is not None:
        assert windows == []
        return
    assert [(w["name"], w["batch"]) for w in windows] == [(n, b) for b in (1, 8) for n in ("torch fp32", "ours")]
    for earlier, later in zip(windows, windows[1:]):
        assert earlier["end"] <= later["start"]
    assert all(w["items"] == w["calls"] * w["batch"] and w["end"] - w["start"] >= 0.04 for w in windows)
