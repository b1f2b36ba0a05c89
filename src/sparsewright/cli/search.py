"""`sparsewright search`: a plan for a recipe's model under a budget."""

from pathlib import Path
from typing import Annotated

import typer

from .console import JsonFlag, print_json, print_table


def search(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML): names model, data and search space.")],
    out: Annotated[Path, typer.Option(help="Where to write the plan.")] = Path("plan.json"),
    speedup: Annotated[
        float | None, typer.Option(help="At least so much faster, instead of the recipe's budget.")
    ] = None,
    max_quality_drop: Annotated[float | None, typer.Option(help="At most so much lost on validation.")] = None,
    size_bytes: Annotated[int | None, typer.Option(help="At most so many bytes.")] = None,
    target: Annotated[str | None, typer.Option(help="Target by name or profile file.")] = None,
    json: JsonFlag = False,
) -> None:
    """Search the plan that fits the budget best, and show the front around it."""
    from ..core import write_text
    from ..pipeline.single_steps import search_recipe
    from ..search import Budget

    own = (speedup, max_quality_drop, size_bytes) == (None, None, None)
    budget = None if own else Budget(speedup=speedup, max_quality_drop=max_quality_drop, size_bytes=size_bytes)
    found = search_recipe(recipe, budget, target)
    write_text(out, found.best.plan.to_json() + "\n")
    if json:
        rows = {"front": found.front, "baselines": found.baselines}
        print_json({"plan": out, "best": found.best.to_row(), **{k: [r.to_row() for r in v] for k, v in rows.items()}})
        return
    print_table(
        ("plan", "speed-up", "predicted drop", "drop", "bytes"),
        [
            (
                row.label,
                round(row.speedup, 2),
                row.predicted_drop,
                "-" if row.drop is None else row.drop,
                round(row.size_bytes),
            )
            for row in (found.best, *found.front, *found.baselines)
        ],
    )
    typer.echo(f"best plan: {out}")
