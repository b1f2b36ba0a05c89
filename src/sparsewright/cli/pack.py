"""`sparsewright pack`: masked weights into a bundle."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import JsonFlag, print_json, print_table


def pack(
    subject: Annotated[str, typer.Argument(help="A recipe (YAML) or a model source: the architecture.")],
    weights: Annotated[Path, typer.Argument(help="What `sparsify` or `train` wrote.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("model.safetensors"),
    plan: Annotated[Path | None, typer.Option(help="The plan the weights were made with.")] = None,
    target: Annotated[str, typer.Option(help="What decides which layouts win: a target or a profile file.")] = "this",
    force: Annotated[bool, typer.Option("--force", help="Pack every masked layer, winner or not.")] = False,
    dense: Annotated[Literal["fp32", "fp16"], typer.Option(help="How dense tensors are stored.")] = "fp32",
    values: Annotated[
        Literal["fp32", "fp16", "int8"] | None, typer.Option(help="How kept values are stored; int8 also runs so.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Pack the layers that win on the target and write the bundle."""
    from ..pipeline.single_steps import pack_to

    rows = pack_to(subject, weights, out, plan=plan, target=target, force=force, dense_dtype=dense, value_dtype=values)
    if json:
        print_json({"bundle": out, "size_bytes": out.stat().st_size, "layers": [vars(row) for row in rows]})
        return
    print_table(
        ("layer", "pattern", "layout", "values", "time", "bytes", "why not"),
        [
            (r.name, r.pattern, r.layout, r.value_dtype, "-" if r.ratio is None else r.ratio, r.size_bytes, r.reason)
            for r in rows
        ],
    )
    typer.echo(f"{out}: {out.stat().st_size:,} bytes")
