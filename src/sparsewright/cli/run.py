"""`sparsewright run`: a recipe from beginning to end, resumably."""

from pathlib import Path
from typing import Annotated

import typer

from ..core import RecipeError
from .console import JsonFlag, print_json, stage_progress


def run(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (YAML), as `init` writes it.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default the recipe's own.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Forget earlier stages, or go on where they stopped.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    json: JsonFlag = False,
) -> None:
    """Run a recipe: profile, calibrate, search, sparsify, recover, pack, save, verify, measure, report."""
    from .. import pipeline
    from ..report import summary

    if recipe is None:
        raise RecipeError(
            "`run` takes a recipe, got none. Write one with `sparsewright init MODEL`, which says how to go on."
        )
    if dry_run:
        lines = pipeline.dry_run(recipe)
        if json:
            print_json({"stages": lines})
        else:
            typer.echo("\n".join(lines))
        return
    with stage_progress(quiet=json) as progress:
        result = pipeline.run(recipe, folder, fresh=fresh, progress=progress)
    if json:
        print_json({"folder": result.folder, "bundle": result.bundle, "results": result.results})
        return
    typer.echo(summary(result.results))
    typer.echo(f"bundle: {result.bundle}\nreport: {result.folder / 'report.html'}")
