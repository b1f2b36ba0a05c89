"""`sparsewright init`: write a commented recipe for a model and its data."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json


def init(
    model: Annotated[
        str, typer.Argument(help="hf:NAME_OR_PATH, timm:NAME, torchvision:NAME or python:MODULE:FACTORY.")
    ],
    data: Annotated[Path | None, typer.Option(help="Training data: CSV, text or npz.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Validation data of the same form.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test data of the same form; opened once, at the end.")] = None,
    task: Annotated[str | None, typer.Option(help="A task by name, instead of the one the data suggest.")] = None,
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier recipe.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write a commented recipe, asking nothing that the model and the files tell by themselves."""
    from ..pipeline.draft import draft_recipe

    draft = draft_recipe(model, out, data=data, validation=validation, test=test, task=task, force=force)
    if json:
        print_json({**vars(draft), "path": draft.path})
        return
    typer.echo(f"{draft.path}: family {draft.family}, {draft.layers} layers can be sparse, task {draft.task}")
    for question in draft.open_questions:
        typer.echo(f"still yours to say: {question}")
    typer.echo(f"next: sparsewright run {draft.path} --dry-run")
