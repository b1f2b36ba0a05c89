"""`sparsewright export`: a bundle as an ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json


def export(
    subject: Annotated[str, typer.Argument(help="A bundle file or a model source.")],
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")] = Path("model.onnx"),
    model: Annotated[
        str | None, typer.Option(help="Source of the architecture; default what the bundle names.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of the example, where the model takes tokens.")] = 64,
    check: Annotated[bool, typer.Option(help="Compare onnxruntime's answer with torch's before writing.")] = True,
    json: JsonFlag = False,
) -> None:
    """Write ONNX: packed layers stay packed in the file, and any runtime can load it."""
    from ..pipeline.export import export_to

    told = export_to(subject, out, model=model, length=length, check=check)
    if json:
        print_json(vars(told))
        return
    packed = ", ".join(f"{count} {name}" for name, count in told.packed_layers.items()) or "none"
    typer.echo(f"{told.path}: {told.size_bytes:,} bytes; packed layers: {packed}")
    typer.echo(f"inputs {', '.join(told.inputs)}; outputs {', '.join(told.outputs)}")
    if told.error is not None:
        typer.echo(f"onnxruntime answers as torch does, within {told.error:.1e} of the largest value")
