"""A row is inside the budget only if every bound that the recipe sets holds for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsewright.models.tasks import Quality
from sparsewright.pipeline import Recipe, RunFolder
from sparsewright.pipeline.inside_budget import inside_budget, inside_quality
from sparsewright.pipeline.session import Session

SPEEDS: dict[str, float | None] = {"1": 1.6, "32": 1.5}


def session(path: Path, **budget: Any) -> Session:
    return Session(Recipe(model="python:m:f", task="python:m:t", budget=budget), RunFolder(path))  # type: ignore[arg-type]


def quality(first: int, second: int) -> Quality:
    """So many of 100 items right in each of two slices."""
    items = np.concatenate([np.arange(100) < first, np.arange(100) < second]).astype(np.float64)
    return Quality(float(items.mean()), items, ["first"] * 100 + ["second"] * 100)


DENSE = quality(90, 90)
CLOSE = quality(90, 84)  # 3 points lost on the whole, 6 on the second slice


@pytest.mark.parametrize(
    ("budget", "held"),
    [
        ({"max_quality_drop": 0.03}, True),
        ({"max_quality_drop": 0.02}, False),
        ({"max_quality_drop": 0.02, "or_standard_errors": 3}, True),
        ({"worst_slice_drop": 0.061}, True),
        ({"worst_slice_drop": 0.05}, False),
        ({"max_quality_drop": 0.03, "worst_slice_drop": 0.05}, False),
        ({"speedup": 1.5}, True),
        ({"speedup": 1.55}, False),
        ({"size_bytes": 1000}, True),
        ({"size_bytes": 999}, False),
        ({"max_quality_drop": 0.03, "worst_slice_drop": 0.061, "speedup": 1.5, "size_bytes": 1000}, True),
        ({"max_quality_drop": 0.03, "worst_slice_drop": 0.061, "speedup": 1.5, "size_bytes": 900}, False),
        ({}, None),
    ],
)
def test_each_bound_is_asked(tmp_path: Path, budget: dict[str, Any], held: bool | None) -> None:
    assert inside_budget(session(tmp_path, **budget), CLOSE, DENSE, SPEEDS, 1000) is held


def test_what_cannot_be_checked_is_neither_yes_nor_no(tmp_path: Path) -> None:
    asked = session(tmp_path, max_quality_drop=0.03, speedup=1.5, size_bytes=1000)
    assert inside_budget(asked, None, DENSE, SPEEDS, 1000) is None
    assert inside_budget(asked, CLOSE, DENSE, {"1": 1.6, "32": None}, 1000) is None
    assert inside_budget(asked, CLOSE, DENSE, SPEEDS, None) is None


def test_a_broken_bound_counts_even_where_others_are_unknown(tmp_path: Path) -> None:
    asked = session(tmp_path, max_quality_drop=0.03, size_bytes=1000)
    assert inside_budget(asked, None, DENSE, {}, 1001) is False


def test_the_dense_model_does_not_reach_a_speedup_over_itself(tmp_path: Path) -> None:
    assert inside_budget(session(tmp_path, speedup=1.2), DENSE, DENSE, {"1": 1.0}, 4000) is False


def test_bounds_on_quality_are_judged_apart_from_the_others(tmp_path: Path) -> None:
    assert inside_quality(session(tmp_path, max_quality_drop=0.03, size_bytes=1), CLOSE, DENSE) is True
    assert inside_quality(session(tmp_path, size_bytes=1), CLOSE, DENSE) is None
