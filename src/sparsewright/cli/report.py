"""`sparsewright report`: the report of a run, again or as one page."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, or its results.json.")],
    summary: Annotated[bool, typer.Option("--summary", help="Print one page for a meeting.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write report.html and report.md from results.json, or print the summary."""
    from .. import report as reports
    from ..core import read_json

    path = folder if folder.suffix == ".json" else folder / "results.json"
    results = read_json(path)
    if summary:
        page = reports.summary(results)
        if json:
            print_json({"summary": page})
        else:
            typer.echo(page)
        return
    written = reports.write_report(results, path.parent)
    if json:
        print_json({"written": written})
    else:
        typer.echo("\n".join(f"written: {file}" for file in written))
