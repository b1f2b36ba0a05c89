"""`sparsewright sparsify`: remove weights in one shot."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json, print_table, stage_progress


def sparsify(
    subject: Annotated[
        str,
        typer.Argument(help="A recipe (YAML), or a model source for methods without data."),
    ],
    plan: Annotated[str, typer.Option(help="A plan file (.json), or a pattern such as 2:4x4.")],
    out: Annotated[Path, typer.Option(help="Goal, .safetensors; or a folder (--stream).")] = Path("sparse.safetensors"),
    method: Annotated[str | None, typer.Option(help="Sparsifier; default the recipe's, or magnitude.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="From disk to disk, one block in memory; goes on where it was interrupted.")
    ] = False,
    engine: Annotated[str, typer.Option(help="With --stream: local, or ray for many machines.")] = "local",
    fresh: Annotated[bool, typer.Option("--fresh", help="With --stream: throw away what was interrupted.")] = False,
    json: JsonFlag = False,
) -> None:
    """Sparsify a model under a plan and write its weights with their masks."""
    from ..pipeline.single_steps import sparsify_to, stream_to

    with stage_progress(quiet=json) as progress:
        steps = progress.steps("sparsify")
        if stream:
            done = stream_to(subject, plan, out, method=method, engine=engine, resume=not fresh, progress=steps)
        else:
            done = sparsify_to(subject, plan, out, method=method, progress=steps)
    if json:
        layers = {name: vars(layer) for name, layer in done.layers.items()}
        print_json({"weights": out, "layers": layers, "skipped": done.skipped, "plan": done.plan.to_data()})
        return
    rows = [(name, row.pattern, row.sparsifier, row.density, row.error) for name, row in done.layers.items()]
    print_table(("layer", "pattern", "method", "density", "relative error"), rows)
    typer.echo(f"{len(done.layers)} layers sparsified, {len(done.skipped)} left dense: {out}")
