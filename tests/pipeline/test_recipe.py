"""Recipes are read with an allow-list, and every fault is named in one sentence."""

from pathlib import Path

import pytest

from sparsewright.core import FileError, RecipeError
from sparsewright.pipeline.recipe import load_recipe, read_yaml

MINIMAL = {"model": "hf:somewhere", "task": "docstring-retrieval"}


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:6:4", "4:8", "2:4x4", "2:4t", "10%", "4x1@50%"])
def test_patterns_need_no_quotes(text: str) -> None:
    assert read_yaml(f"patterns: [{text}]") == {"patterns": [text]}


def test_numbers_are_still_numbers() -> None:
    read = read_yaml("a: 12\nb: -3\nc: 0.02\nd: 1e-3\ne: 2.5e-4\nf: 0x10\ng: 1_000\nh: 0\ni: .5")
    assert read == {"a": 12, "b": -3, "c": 0.02, "d": 1e-3, "e": 2.5e-4, "f": 16, "g": 1000, "h": 0, "i": 0.5}


def test_a_minimal_recipe_is_complete() -> None:
    recipe = load_recipe(MINIMAL)
    assert recipe.task.name == "docstring-retrieval"
    assert recipe.budget.max_quality_drop == 0.02
    assert "4x1@50%" in recipe.sparsify.patterns
    assert recipe.target == ("this",)


def test_options_of_a_task_are_kept_apart() -> None:
    recipe = load_recipe({**MINIMAL, "task": {"name": "sentence-pairs", "path": "pairs.csv"}})
    assert recipe.task.options == {"path": "pairs.csv"}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"recover": {"minutes": float("inf")}}, "recover.minutes"),
        ({"measure": {"seconds": float("nan")}}, "measure.seconds"),
        ({"sparsify": {"patterns": []}}, "sparsify.patterns"),
        ({"sparsify": {"value_dtypes": ["int9"]}}, "sparsify.value_dtypes.0: input should be 'fp32', 'fp16' or 'int8'"),
        ({"bugdet": {}}, "no key 'bugdet'. Did you mean 'budget'"),
        ({"budget": {"max_quality_dorp": 1}}, "no key 'budget.max_quality_dorp'. Did you mean 'max_quality_drop'"),
        ({"recover": {"minutes": 1, "stpes": 3}}, "Did you mean 'steps'"),
        ({"recover": {"minutes": 1, "steps": 3}}, "either minutes or steps"),
        ({"recover": {"steps": 3, "schedule": "gradual"}}, "recover.schedule: recovery moves masks by fixed"),
        ({"sparsify": {"patterns": ["5:4"]}}, "1 <= n <= m"),
        ({"sparsify": {"patterns": ["two of four"]}}, "is no pattern"),
        ({"budget": {"speedup": 0.5}}, "budget.speedup"),
        ({"measure": {"batches": ["many"]}}, "measure.batches"),
    ],
)
def test_a_fault_is_named_with_what_to_do(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe({**MINIMAL, **change})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="lacks the key 'model'"):
        load_recipe({"task": "docstring-retrieval"})


def test_text_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    for text in ("- a\n- b", "just text", "a: [1"):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError):
            load_recipe(path)
    with pytest.raises(FileError, match="cannot be read"):
        load_recipe(tmp_path / "missing.yaml")


def test_yaml_tags_cannot_make_objects() -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        read_yaml("a: !!python/object/apply:os.system ['true']")
