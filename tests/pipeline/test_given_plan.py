"""A recipe may bring its own plan; what cannot be done is refused before anything is measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sparsewright.core import BudgetError, PatternError, PlanError, RecipeError, SparsewrightError
from sparsewright.pipeline import dry_run, run


def test_the_recipes_own_plan_is_obeyed(
    small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fresh process that reloads the bundle must find the model's module too.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    recipe = small_recipe(sparsify={"plan": {"re:0|2": "2:4x4"}}, recover={"steps": 2})
    result = run(recipe, tmp_path / "run")
    chosen = {name: str(layer.pattern) for name, layer in result.plan.layers.items()}
    assert chosen == {"0": "2:4x4", "2": "2:4x4"}
    assert (tmp_path / "run" / "report.html").exists()


def test_edges_and_the_best_method_per_layer_go_through_a_whole_run(
    small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path / "cache"))
    plan = {"0": "3:6", "2": {"pattern": "2:4", "value_dtype": "int8"}}
    sparsify = {"plan": plan, "method": "auto", "edge": "at_most"}
    recipe = small_recipe(sparsify=sparsify, target="this", recover={"enabled": False})
    result = run(recipe, tmp_path / "run")
    assert {name: str(layer.pattern) for name, layer in result.plan.layers.items()} == {"0": "3:6", "2": "2:4"}
    assert {layer.sparsifier for layer in result.plan.layers.values()} <= {"alps", "sparsegpt"}


@pytest.mark.parametrize(
    "sparsify, error, sentence",
    [
        ({"plan": {"nolayer": "2:4"}}, PlanError, "names no layer"),
        ({"plan": {"re:.*": "9:10"}}, PatternError, "does not fit"),
        ({"plan": {"re:.*": "9:4"}}, PatternError, "1 <= n <= m"),
        ({"patterns": ["3:7"]}, PatternError, "fits no layer of this model"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_measured(
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    sparsify: dict[str, object],
    error: type[SparsewrightError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        run(small_recipe(sparsify=sparsify), tmp_path / "run")
    assert not (tmp_path / "run" / "plan.json").exists()


def test_a_task_for_another_kind_of_model_is_refused(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(RecipeError, match="which it does not take"):
        run(small_recipe(task="digits"), tmp_path / "run")


@pytest.mark.parametrize(
    "budget, sentence",
    [({"speedup": 50.0}, "the fastest that these patterns"), ({"size_bytes": 10}, "the smallest file")],
)
def test_a_budget_out_of_reach_names_what_can_be_had(
    small_recipe: Callable[..., Path], tmp_path: Path, budget: dict[str, float], sentence: str
) -> None:
    with pytest.raises(BudgetError, match=sentence):
        run(small_recipe(budget=budget), tmp_path / "run")


@pytest.mark.parametrize("change", [{"model": "hff:x"}, {"task": "nope"}, {"sparsify": {"patterns": ["3:7"]}}])
def test_a_dry_run_checks_model_layers_and_task(small_recipe: Callable[..., Path], change: dict[str, object]) -> None:
    with pytest.raises(SparsewrightError):
        dry_run(small_recipe(**change))


def test_a_dry_run_names_the_stages_and_writes_nothing(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = small_recipe()
    before = sorted(tmp_path.iterdir())
    lines = dry_run(recipe)
    assert any("layers can be sparse" in line for line in lines)
    assert any(line.startswith("measure:") for line in lines)
    assert sorted(tmp_path.iterdir()) == before
