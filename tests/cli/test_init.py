"""`init` writes a recipe that `run` accepts, and asks only what nobody but the user can know."""

from pathlib import Path

import numpy as np
import pytest
from cli_runs import Command
from torch import nn

from sparsewright.models import LoadedModel
from sparsewright.pipeline import load_recipe
from sparsewright.pipeline.draft import _task_for


def loaded(family: str, tokenizer: object = None) -> LoadedModel:
    return LoadedModel(nn.Linear(2, 2), "python:m:f", family, None, tokenizer)  # type: ignore[arg-type]


def test_the_recipe_is_commented_and_loads(command: Command, workplace: Path) -> None:
    done = command("init", "python:mine:build")
    assert done.code == 0, done.err
    assert "recipe.yaml" in done.out
    text = (workplace / "recipe.yaml").read_text()
    assert text.count("#") > 8
    recipe = load_recipe(workplace / "recipe.yaml")
    assert recipe.model == "python:mine:build"
    assert "2:4" in recipe.sparsify.patterns
    assert recipe.task.name.startswith("python:")


def test_an_earlier_recipe_is_kept_unless_forced(command: Command, workplace: Path) -> None:
    (workplace / "recipe.yaml").write_text("mine")
    assert "--force" in command("init", "python:mine:build").sentence
    assert (workplace / "recipe.yaml").read_text() == "mine"
    assert command("init", "python:mine:build", "--force").code == 0


@pytest.mark.parametrize(
    ("name", "content", "task"),
    [
        ("pairs.csv", "one,two,score\na text,b text,3.5\nc text,d text,1\n", "sentence-pairs"),
        ("labels.csv", "text,label\nsome text,1\nother text,0\n", "text-classification"),
        ("story.txt", "Once upon a time", "text-lm"),
    ],
)
def test_the_data_file_tells_the_task(command: Command, workplace: Path, name: str, content: str, task: str) -> None:
    (workplace / name).write_text(content)
    told = command("init", "python:mine:build", "--data", name, "--json").json
    assert told["task"] == task
    recipe = load_recipe(workplace / "recipe.yaml")
    assert recipe.task.name == task
    assert recipe.task.options["train"] == name
    assert any("validation" in question for question in told["open_questions"])


def test_images_are_told_by_npz(command: Command, workplace: Path) -> None:
    np.savez(workplace / "train.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.zeros(2, np.int64))
    files = ("--data", "train.npz", "--validation", "train.npz", "--test", "train.npz")
    told = command("init", "python:mine:build", *files, "--json").json
    assert told["task"] == "image-classification"
    assert told["open_questions"] == []


def test_without_data_the_family_tells_the_task() -> None:
    assert _task_for(loaded("encoder", object()), None) == "docstring-retrieval"
    assert _task_for(loaded("causal-lm", object()), None) == "text-lm"
    assert _task_for(loaded("classifier", object()), None) == "text-classification"
    assert _task_for(loaded("vision"), None) == "image-classification"
    assert _task_for(loaded("encoder"), None).startswith("python:")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("python:mine:nothing",), "has no callable"),
        (("hff:name",), "Did you mean 'hf'"),
        (("python:mine:bare",), "no layer that could be sparse"),
        (("python:mine:build", "--data", "nowhere.csv"), "There is no file nowhere.csv"),
        (("python:mine:build", "--task", "text-ml"), "Did you mean 'text-lm'"),
        (("python:mine:build", "--data", "mine.py"), "no known form"),
    ],
)
def test_mistakes_are_one_line(command: Command, workplace: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in command("init", *arguments).sentence
    assert not (workplace / "recipe.yaml").exists()
