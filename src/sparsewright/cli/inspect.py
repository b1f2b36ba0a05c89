"""`sparsewright inspect`: what a bundle holds, without reading its tensors."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json, print_table


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    manifest: Annotated[bool, typer.Option("--manifest", help="Print the whole manifest.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show layers, patterns, bytes and the manifest of a bundle; only its header is read."""
    from .. import bundle

    info = bundle.inspect(path)
    if json or manifest:
        print_json(info.manifest.to_data() if manifest else info.to_data())
        return
    typer.echo(f"{info.path}: {info.size_bytes:,} bytes, {info.share_of_dense:.1%} of dense fp32")
    model = info.manifest.model
    typer.echo(f"{model.family}, {model.library} {model.architecture}, written by {info.manifest.producer}")
    print_table(
        ("tensor", "shape", "pattern", "layout", "values", "bytes", "theory"),
        [
            (
                r.name,
                "x".join(map(str, r.shape)),
                r.pattern,
                r.layout,
                r.dtype,
                r.size_bytes,
                round(r.theoretical_bytes),
            )
            for r in info.rows
        ],
    )
