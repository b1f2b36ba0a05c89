"""`sparsewright train`: recover a sparsified model by distillation from the dense one."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json, stage_progress


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML): names model and data.")],
    weights: Annotated[Path, typer.Argument(help="What `sparsify` wrote.")],
    out: Annotated[Path, typer.Option(help="Where to write weights and masks.")] = Path("recovered.safetensors"),
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, instead of the recipe's.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes, instead of the recipe's.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="How masks move meanwhile: fixed, periodic, sr_ste, set, rigl.")
    ] = None,
    every: Annotated[int | None, typer.Option(help="Steps from one change of masks to the next.")] = None,
    json: JsonFlag = False,
) -> None:
    """Distil the dense model into the sparsified one; masks stay, unless a schedule moves them within their patterns.
    Goes on from its checkpoint after a kill."""
    from ..pipeline.single_steps import train_to

    with stage_progress(quiet=json) as progress:
        shown = progress.steps("train")
        done = train_to(
            recipe,
            weights,
            out,
            steps=steps,
            minutes=minutes,
            schedule=schedule,
            every=every,
            progress=lambda step, total, loss: shown(step, total, f"loss {loss:.4f}"),
        )
    first, last = (done.losses[0], done.losses[-1]) if done.losses else (float("nan"), float("nan"))
    if json:
        print_json(
            {
                "weights": out,
                "steps": done.steps,
                "lr": done.lr,
                "first_loss": first,
                "last_loss": last,
                "seconds": done.seconds,
            }
        )
        return
    typer.echo(f"{done.steps} steps, loss {first:.4f} -> {last:.4f}: {out}")
