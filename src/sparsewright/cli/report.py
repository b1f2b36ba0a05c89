"""`sparsewright report`: the report of a run, again or as one page, with energy from a power meter if there is one."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, or its results.json.")],
    summary: Annotated[bool, typer.Option("--summary", help="Print one page for a meeting.")] = False,
    power: Annotated[
        Path | None,
        typer.Option(help="A power meter's CSV file (columns time, watts): fill in joules per inference."),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(help="Estimate joules per inference from this constant power; marked as an estimate."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write report.html and report.md from results.json, or print the summary."""
    from .. import report as reports
    from ..core import DataError, read_json, write_json

    path = folder if folder.suffix == ".json" else folder / "results.json"
    results = read_json(path)
    if power is not None and watts is not None:
        raise DataError("Energy has one source: give --power or --watts, not both.")
    if power is not None:
        results = reports.with_power_log(results, reports.read_power_log(power))
    if watts is not None:
        results = reports.with_assumed_watts(results, watts)
    if power is not None or watts is not None:
        # Kept in the results, so that the next report holds it too.
        write_json(path, results)
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
