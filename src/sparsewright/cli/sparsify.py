"""`sparsewright sparsify`: remove weights in one shot, or take over masks made elsewhere."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..core import PlanError
from .console import JsonFlag, print_json, print_table, stage_progress


def sparsify(
    subject: Annotated[str, typer.Argument(help="A recipe (YAML), or a model source for methods without data.")],
    plan: Annotated[str | None, typer.Option(help="A plan file (.json), or a pattern such as 2:4x4.")] = None,
    out: Annotated[Path, typer.Option(help="Goal, .safetensors; or a folder (--stream).")] = Path("sparse.safetensors"),
    method: Annotated[
        str | None, typer.Option(help="Sparsifier; default the recipe's, or magnitude. auto: the best per layer.")
    ] = None,
    edge: Annotated[
        Literal["error", "at_most", "dense"] | None, typer.Option(help="Tiles that a layer's end cuts off.")
    ] = None,
    values: Annotated[
        Literal["fp32", "fp16", "int8"] | None, typer.Option(help="Kept values; int8 rounds in the same pass.")
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(help="Prune nothing: masks by layer name (.safetensors, .npz), or `zeros` of the weights."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="From disk to disk, one block in memory; goes on where it was interrupted.")
    ] = False,
    engine: Annotated[str, typer.Option(help="With --stream: local, or ray for many machines.")] = "local",
    fresh: Annotated[bool, typer.Option("--fresh", help="With --stream: throw away what was interrupted.")] = False,
    json: JsonFlag = False,
) -> None:
    """Sparsify a model under a plan, or adopt masks, and write its weights with their masks."""
    from ..pipeline.single_steps import adopt_to, sparsify_to, stream_to

    if (plan is None) == (masks is None):
        raise PlanError("Give either --plan, a plan or a pattern to prune by, or --masks, what was pruned already.")
    if masks is not None:
        if method or edge or values or stream:
            raise PlanError("--masks takes weights over as they are. Leave --method, --edge, --values, --stream out.")
        done = adopt_to(subject, masks, out)
    else:
        assert plan is not None
        with stage_progress(quiet=json) as progress:
            steps = progress.steps("sparsify")
            options: dict[str, Any] = {"method": method, "edge": edge, "value_dtype": values, "progress": steps}
            if stream:
                done = stream_to(subject, plan, out, engine=engine, resume=not fresh, **options)
            else:
                done = sparsify_to(subject, plan, out, **options)
    if json:
        layers = {name: vars(layer) for name, layer in done.layers.items()}
        print_json({"weights": out, "layers": layers, "skipped": done.skipped, "plan": done.plan.to_data()})
        return
    rows = [(name, row.pattern, row.sparsifier, row.density, row.error) for name, row in done.layers.items()]
    print_table(("layer", "pattern", "method", "density", "relative error"), rows)
    typer.echo(f"{len(done.layers)} layers sparsified, {len(done.skipped)} left dense: {out}")
