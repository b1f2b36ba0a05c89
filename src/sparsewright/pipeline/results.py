"""Put the stages' results together: what `results.json` holds and the report reads.

Everything that depends on clocks or on the machine stands under `measured`; the rest is the same on every rerun.
"""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..hardware import this_machine
from ..layouts import choose_layout, float_layout
from ..search import Choice, CostTable
from .costs import device_rows
from .deliver import final_judgement
from .folder import digest
from .plan_search import PlanSearch, Settled
from .quality import bootstrap_interval
from .session import Session


def assemble(
    session: Session,
    search: PlanSearch,
    settled: Settled,
    tables: dict[str, CostTable],
    kept: dict[str, Any],
    checked: dict[str, Any],
    tested: dict[str, Any],
    measured: dict[str, Any],
) -> dict[str, Any]:
    """The content of `results.json`, version 1; see the docs page on reading a report for every field."""
    recipe = session.recipe
    parameters = sum(parameter.numel() for parameter in session.dense.parameters())
    final = final_judgement(kept)
    validation = {
        "dense": final.quality + final.drop,
        "one_shot": settled.one_shot.quality,
        "ours": final.quality,
        "drop": final.drop,
        "stderr": final.stderr,
        **_validation_interval(session, kept),
    }
    facts = session.task.describe()
    machine = this_machine()
    label = search.table.labels[0]
    rows = search.front_rows(settled)
    _fill_measured(rows, measured)
    return {
        "version": 1,
        "tool": {"name": "sparsewright", "version": _version()},
        "recipe": recipe.to_data(),
        "recipe_sha256": digest(recipe.to_data()),
        "model": {
            "source": recipe.model,
            "family": session.loaded.family,
            "parameters": parameters,
            "dense_bytes": 4 * parameters,
        },
        "data": {"task": recipe.task.name, "metric": session.task.metric, "unit": "points", "facts": facts},
        "budget": recipe.budget.model_dump(),
        "quality": {"validation": validation, "test": tested},
        "held": final.inside(session),
        "attempts": settled.attempts,
        "plan": settled.plan.to_data(),
        "sensitivity": _sensitivity_rows(search),
        "bytes": _bytes(session, settled, kept, parameters),
        "prices": None if recipe.prices is None else recipe.prices.model_dump(),
        "measured": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": {**machine.to_data(), "threads": recipe.measure.threads},
            "layers": _layer_rows(session, search, settled),
            "front": rows,
            "devices": device_rows(tables, settled.plan, label),
            "timings": [{"stage": name, "seconds": seconds} for name, seconds in session.folder.seconds.items()],
            "reload": checked["fresh"],
            **measured,
        },
    }


def _validation_interval(session: Session, kept: dict[str, Any]) -> dict[str, Any]:
    """The paired bootstrap interval of the model in the file, as on test, from the items that scoring kept."""
    dense = session.read_items("dense-validation")
    ours = session.read_items(f"bundle-{kept['dense_dtype']}-validation")
    return {"interval": bootstrap_interval(dense - ours, session.recipe.seed), "n": len(dense)}


def _version() -> str:
    try:
        return version("sparsewright")
    except PackageNotFoundError:
        return "unknown"


def _fill_measured(rows: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    """The chosen point of the front was measured end to end; the others were predicted only."""
    first = next(iter(measured["prediction"]["rows"]), None)
    for row in rows:
        if row["chosen"] and first is not None:
            row["measured_s"] = first["measured_s"]


def _sensitivity_rows(search: PlanSearch) -> list[dict[str, Any]]:
    found = search.sensitivity
    return [
        {"layer": layer, "pattern": pattern, "error": error, "weight": found.weights[layer]}
        for (layer, pattern), error in found.errors.items()
    ]


def _layout(choice: Choice, shape: tuple[int, int]) -> str:
    if choice.value_dtype == "int8":
        return choose_layout(choice.pattern, shape, torch.int8)
    return "" if choice.is_dense else float_layout(choice.pattern, shape)


def _layer_rows(session: Session, search: PlanSearch, settled: Settled) -> list[dict[str, Any]]:
    table = search.table
    label = table.labels[0]
    number = {name: position for position, name in enumerate(table.names)}
    rows = []
    for layer in session.layers:
        row: dict[str, Any] = {"name": layer.name, "shape": list(layer.shape), "pattern": "dense", "density": 1.0}
        if layer.name not in number:
            rows.append({**row, "reason": layer.skipped_reason})
            continue
        position = number[layer.name]
        pick = settled.pick.choices[position]
        choice = table.choices[position][pick]
        plan = settled.plan.layers[layer.name]
        error = search.sensitivity.errors.get((layer.name, str(choice.pattern)))
        rows.append(
            {
                **row,
                "pattern": str(choice.pattern),
                "layout": _layout(choice, layer.shape),
                "value_dtype": choice.value_dtype,
                "sparsifier": plan.sparsifier or session.recipe.sparsify.method if not choice.is_dense else None,
                "density": choice.pattern.density,
                "dense_s": table.seconds[label][position][0],
                "predicted_s": table.seconds[label][position][pick],
                "sensitivity": error,
                "bytes": table.size_bytes[position][pick],
                "reason": plan.reason,
            }
        )
    return rows


def _bytes(session: Session, settled: Settled, kept: dict[str, Any], parameters: int) -> dict[str, Any]:
    """Whole files; theoretical = pattern bytes of the planned layers + everything else as it is stored."""
    shapes = {layer.name: layer.shape for layer in session.candidates}
    width = 2 if kept["dense_dtype"] == "fp16" else 4
    planned = 0.0
    inside = 0
    for name, layer in (settled.plan.sparse_layers | settled.plan.int8_layers).items():
        planned += Choice(layer.pattern, layer.value_dtype).size_bytes(shapes[name], session.recipe.save.values)
        inside += shapes[name][0] * shapes[name][1]
    return {
        "dense_fp32": 4 * parameters,
        "dense_fp16": 2 * parameters,
        "ours": kept["size_bytes"],
        "theoretical": planned + width * (parameters - inside),
        "dense_tensors": kept["dense_dtype"],
    }
