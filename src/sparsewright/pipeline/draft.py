"""`init`: a commented recipe for the user's model and data, from what the model and the files themselves tell."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..core import DataError, FileError, ModelError, parse_pattern, suggest, write_text
from ..models import LoadedModel, layers, load_model
from ..models.tasks import tasks
from .recipe import DEFAULT_PATTERNS, load_recipe, read_yaml

_TEXT_FILES = (".txt", ".text", ".md")
_TABLE_FILES = (".csv", ".tsv")


@final
@dataclass(frozen=True)
class Draft:
    """What `draft_recipe` found and wrote.

    Attributes:
        path: of the recipe.
        text: the recipe.
        family: of the model.
        task: chosen task.
        layers: how many layers can be sparse.
        open_questions: what only the user can answer; each stands in the recipe at its place.
    """

    path: Path
    text: str
    family: str
    task: str
    layers: int
    open_questions: tuple[str, ...]


def draft_recipe(
    model: str,
    path: str | Path,
    *,
    data: str | Path | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    task: str | None = None,
    force: bool = False,
) -> Draft:
    """Load the model, look at its layers and at the data files, and write a recipe that `run` accepts.

    Args:
        model: source, see `models.load_model`.
        path: goal.
        data: training file (CSV, text or npz); without it, data that every machine has where the family allows.
        validation, test: files of the same form; without `validation` the recipe says where to name one.
        task: name of a task, instead of the one the data suggest.
        force: overwrite an earlier recipe.

    Raises:
        FileError: the recipe is there already, or a data file is not.
        DataError: the data file's form is not known.
        ModelError: the model cannot be loaded or has no layer that can be sparse.
    """
    goal = Path(path)
    if goal.exists() and not force:
        raise FileError(f"{goal} is there already. Pass --force to overwrite it, or --out to write another file.")
    for file in (data, validation, test):
        if file is not None and not Path(file).is_file():
            raise FileError(f"There is no file {file}. Check the path of your data.")
    if task is not None and task not in tasks.names():
        raise DataError(f"There is no task {task!r}. {suggest(task, tasks.names())}")
    loaded = load_model(model)
    taking_part = [ref for ref in layers(loaded.model) if not ref.skipped_reason]
    if not taking_part:
        raise ModelError(f"{model} has no layer that could be sparse. `sparsewright doctor {model}` gives the reasons.")
    files = {"train": data, "validation": validation, "test": test}
    name = task or _task_for(loaded, Path(data) if data is not None else None)
    questions: list[str] = []
    section = _task_section(name, files, loaded, questions)
    shapes = {ref.shape for ref in taking_part}
    patterns = [text for text in DEFAULT_PATTERNS if all(parse_pattern(text).fits(shape) for shape in shapes)]
    text = _recipe(model, loaded, len(taking_part), section, patterns or ["50%", "4x1@50%"], questions)
    load_recipe(read_yaml(text))
    write_text(goal, text)
    return Draft(goal, text, loaded.family, name, len(taking_part), tuple(questions))


def _task_for(loaded: LoadedModel, data: Path | None) -> str:
    """The task that the data's form and the model's family ask for."""
    if data is None:
        return {
            "encoder": "docstring-retrieval" if loaded.tokenizer is not None else "",
            "causal-lm": "text-lm",
            "classifier": "text-classification",
            "vision": "image-classification",
        }.get(loaded.family) or "python:my_task:make_task"
    if data.suffix == ".npz":
        return "image-classification"
    if data.suffix in _TEXT_FILES:
        return "text-lm"
    if data.suffix in _TABLE_FILES:
        return _task_of_table(data)
    raise DataError(
        f"{data.name} is of no known form. Give CSV (pairs or labelled texts), text, "
        "or npz (images and labels); or write a task in Python and name it with `task: python:MODULE:FACTORY`."
    )


def _task_of_table(data: Path) -> str:
    try:
        with data.open(encoding="utf-8", newline="") as stream:
            rows = [row for row, _ in zip(csv.reader(stream), range(20)) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{data} cannot be read as CSV in UTF-8: {error}.") from error
    if not rows:
        raise DataError(f"{data} is empty. Give a CSV file with rows.")
    last = rows[-1]
    if len(last) >= 3 and _is_number(last[2]) and not _is_number(last[1]):
        return "sentence-pairs"
    if len(last) >= 2 and _is_number(last[1]):
        return "text-classification"
    raise DataError(
        f"{data} has {len(last)} columns of an unknown form. Sentence pairs are text, text, score; labelled texts are "
        "text, class number."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _task_section(name: str, files: dict[str, Any], loaded: LoadedModel, questions: list[str]) -> list[str]:
    if name.startswith("python:"):
        questions.append("write the function that returns your task (examples/own_model.py shows one)")
        return [f"task: {name}   # your own task: see examples/own_model.py and the page `add a task`"]
    lines = ["task:", f"  name: {name}   # {tasks.get(name).about}"]
    if name in ("docstring-retrieval", "digits"):
        if name == "digits":
            lines.append(f"  argument: {_image_argument(loaded)}   # name of the image argument in the model's forward")
        return lines
    suffix = {"text-lm": "txt", "image-classification": "npz"}.get(name, "csv")
    for split in ("train", "validation"):
        given = files[split]
        if given is None:
            questions.append(f"name your {split} file under task.{split}")
        value = given if given is not None else f"{split}.{suffix}"
        lines.append(f"  {split}: {value}" + ("" if given is not None else "   # <- your file"))
    if files["test"] is not None:
        lines.append(f"  test: {files['test']}   # opened once, at the end")
    else:
        questions.append("name your test file under task.test: the figures at the end come from it")
        lines.append(f"  test: test.{suffix}   # <- your file; opened once, at the end")
    if name == "image-classification":
        lines.append(f"  argument: {_image_argument(loaded)}   # name of the image argument in the model's forward")
        lines += ["  mean: 0.5   # as the model was trained", "  std: 0.5"]
    return lines


def _image_argument(loaded: LoadedModel) -> str:
    return "pixel_values" if type(loaded.model).__module__.startswith("transformers.") else "x"


def _recipe(
    model: str, loaded: LoadedModel, count: int, task: list[str], patterns: list[str], questions: list[str]
) -> str:
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    todo = [f"# Still yours to say: {question}." for question in questions]
    return "\n".join(
        [
            f"# {model}: {loaded.family}, {parameters / 1e6:,.1f} million parameters; {count} layers can be sparse.",
            "# Check it with `sparsewright run FILE --dry-run`, then run it with `sparsewright run FILE`.",
            *todo,
            f"model: {model}",
            "",
            *task,
            "",
            "budget:",
            "  max_quality_drop: 0.02   # at most so much lost on validation, in the task's unit (0.02 = two points)",
            "  or_standard_errors: 2    # ... or so many paired standard errors, if that is more",
            "  # speedup: 1.5           # or: at least so much faster than torch fp32, with the least loss",
            "  # size_bytes: 20000000   # and, or: at most so many bytes",
            "",
            "sparsify:",
            "  method: sparsegpt        # or wanda (faster, a little worse), magnitude (needs no data)",
            "  # Plain patterns lose least, shared ones (x4, 4x1) run fastest: a plan mixes them per layer.",
            f"  patterns: [{', '.join(patterns)}]",
            "  # int8 rows run fastest where the processor multiplies bytes; a plan mixes them, dense ones included.",
            "  value_dtypes: [fp32, int8]",
            "",
            "save:",
            "  values: fp16             # kept values in half precision in the file; they run as fp32, which is faster",
            "  dense: fp16              # everything else likewise, where validation still holds the budget",
            "",
            "recover:                   # distillation from the dense model after the one-shot step",
            "  minutes: 4               # 0 is not allowed: set `enabled: false` to leave it out",
            "",
            "measure:",
            "  batches: [1, 32]         # batch sizes that you will serve",
            "  length: 64               # tokens per item, where the model takes tokens",
            "  threads: 1",
            "  # energy_seconds: 30     # then each alone, for a power meter's log: `report --power meter.csv`",
            "",
        ]
    )
