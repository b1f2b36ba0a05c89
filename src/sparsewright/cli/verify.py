"""`sparsewright verify`: is a bundle whole, unchanged and decodable?"""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json, stage_progress


def verify(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    json: JsonFlag = False,
) -> None:
    """Check every byte of a bundle; exit code 2 if anything is wrong."""
    from .. import bundle

    with stage_progress(quiet=json) as progress:
        found = bundle.verify(path, progress=progress.bar("verify", path.name))
    if json:
        print_json({**vars(found), "ok": found.ok})
    found.require()
    if not json:
        typer.echo(f"{path}: good; {found.tensors} tensors and {found.layers} packed layers checked")
        typer.echo(f"content {found.content_digest}")
