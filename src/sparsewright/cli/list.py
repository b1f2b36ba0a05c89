"""`sparsewright list`: everything that is registered, plug-ins included."""

from typing import Annotated

import typer

from .console import JsonFlag, print_json, print_table


def list_(
    kind: Annotated[str | None, typer.Argument(help="solvers, layouts, sparsifiers, kernels, targets, ...")] = None,
    json: JsonFlag = False,
) -> None:
    """List solvers, layouts, sparsifiers, kernels, adapters, tasks, targets, distillations and schedules."""
    from ..core import RecipeError, suggest
    from .registries import about, registries

    known = registries()
    if kind is not None and kind not in known:
        raise RecipeError(f"There is no kind {kind!r}. {suggest(kind, known)}")
    chosen = {kind: known[kind]} if kind is not None else known
    if json:
        print_json(
            {name: [{"name": key, "about": about(item)} for key, item in reg.items()] for name, reg in chosen.items()}
        )
        return
    rows = [(name, key, about(item)) for name, reg in chosen.items() for key, item in reg.items()]
    print_table(("kind", "name", "about"), rows)
