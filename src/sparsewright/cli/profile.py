"""`sparsewright profile`: measure what layers cost on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json, print_table


def profile(
    target: Annotated[str, typer.Argument(help="`this`, or a profile file to show.")] = "this",
    shapes: Annotated[str | None, typer.Option(help="Layer shapes OUTxIN, comma between.")] = None,
    patterns: Annotated[str | None, typer.Option(help="Patterns, comma between.")] = None,
    tokens: Annotated[str, typer.Option(help="Token counts, comma between.")] = "1,64,1024",
    values: Annotated[str, typer.Option(help="Value types (fp32, fp16, int8), comma between.")] = "fp32",
    minutes: Annotated[float | None, typer.Option(min=0.01, help="About how long it may take.")] = None,
    threads: Annotated[int, typer.Option(help="Threads that the model will run with.")] = 1,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Forget earlier measurements.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the profile to this file, so that it can travel.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Measure layers against torch's dense linear; kept in a cache, and in a file where asked."""
    from .. import hardware
    from ..pipeline.single_steps import profile_rows
    from . import parse

    hardware.keep_freed_memory()
    if target.endswith(".json"):
        found = hardware.Profile.load(target)
    else:
        found = hardware.profile(
            target,
            shapes=parse.shapes(shapes) if shapes else None,
            patterns=[text.strip() for text in patterns.split(",")] if patterns else None,
            tokens=parse.counts(tokens),
            value_dtypes=[text.strip() for text in values.split(",")],  # type: ignore[misc]
            minutes=minutes,
            threads=threads,
            remeasure=remeasure,
            out=out,
        )
    rows = profile_rows(found)
    if json:
        print_json({"machine": dict(found.machine), "created": found.created, "threads": found.threads, "rows": rows})
        return
    typer.echo(f"{found.machine.get('cpu', 'unknown machine')}, {found.threads} thread(s), {found.created}")
    if rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    if out is not None:
        typer.echo(f"written: {out}")
