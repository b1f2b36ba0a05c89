"""Stage: time the dense model and every choice of every layer, on each target the recipe names."""

from typing import Any

from torch import nn

from ..core import Edge, LayerPlan, Plan, ProfileError, ValueType, parse_pattern
from ..hardware import AbstractTarget, LayerTime, ModelTime, calibrated, load_target, time_model
from ..search import Choice, CostTable, cost_table
from .session import Session

MEASURED = "this"


def batch_labels(session: Session) -> list[str]:
    """One label per timed batch size, as the report prints it."""
    return [str(size) for size in session.recipe.measure.batches]


def time_dense(session: Session) -> dict[str, ModelTime]:
    """The dense model at each batch size, each layer timed inside it."""
    section = session.recipe.measure
    modules: dict[str, nn.Module] = {layer.name: layer.module for layer in session.candidates}
    shapes = {layer.name: layer.shape for layer in session.candidates}
    times = {}
    for size in section.batches:
        batch = session.task.bench_batch(size, section.length)
        times[str(size)] = time_model(session.dense, batch, modules, shapes, threads=section.threads)
    return times


def cost_stage(session: Session) -> dict[str, Any]:
    """Costs per target: `{"times": ..., "tables": {target: table}}` as plain data."""
    recipe = session.recipe
    # A tensor outside the layers is stored as recipe.save.dense says.
    in_layers = sum(layer.shape[0] * layer.shape[1] for layer in session.candidates)
    everything = sum(parameter.numel() for parameter in session.dense.parameters())
    dense_bytes = 2 if recipe.save.dense == "fp16" else 4
    here = time_dense(session)
    if MEASURED in recipe.target:
        inputs = {str(size): session.task.bench_batch(size, recipe.measure.length) for size in recipe.measure.batches}
        # int8 rows are the fastest where they run: a plan that may use them will.
        kind: ValueType = "int8" if "int8" in value_types(session) else "fp32"
        here = calibrated(
            here, session.dense, inputs, load_target(MEASURED), value_dtype=kind, threads=recipe.measure.threads
        )
    tables = {}
    for name in recipe.target:
        target = load_target(name)
        times = here if name == MEASURED else _on(here, target)
        table = cost_table(
            target,
            times,
            session.patterns,
            value_types(session),
            rest_bytes=float(dense_bytes * (everything - in_layers)),
            dense_value_dtype=recipe.save.dense,
            stored_value_dtype=recipe.save.values,
            kernel_value_dtypes={layer.name: layer.view.value_types for layer in session.candidates},
        )
        tables[name] = table_to_data(table)
    return {"times": {label: time_to_data(time) for label, time in here.items()}, "tables": tables}


def value_types(session: Session) -> list[ValueType]:
    """Value types of the search space: the recipe's, or those of its own plan."""
    if session.given_plan is None:
        return list(session.recipe.sparsify.value_dtypes)
    changed = session.given_plan.sparse_layers | session.given_plan.int8_layers
    return list(dict.fromkeys(layer.value_dtype for layer in changed.values())) or ["fp32"]


def _on(times: dict[str, ModelTime], target: AbstractTarget) -> dict[str, ModelTime]:
    return {label: time.on(target) for label, time in times.items()}


def device_rows(tables: dict[str, CostTable], plan: Plan, label: str) -> list[dict[str, Any]]:
    """The chosen plan on every target of the recipe."""
    rows = []
    for name, table in tables.items():
        pick = table.pick_of(plan)
        left_out = sum(number == 0 for number, layer in zip(pick, plan.layers.values()) if not layer.is_dense)
        text = f"{len(plan.sparse_layers)} sparse layers" + (f", {left_out} of them dense here" if left_out else "")
        rows.append(
            {
                "target": name,
                "plan": text,
                "predicted_s": table.total_s(pick, label),
                "speedup": table.speedup(pick, label),
            }
        )
    return rows


def time_to_data(time: ModelTime) -> dict[str, Any]:
    """Plain data of a timed model."""
    layers = {
        name: [list(layer.shape), layer.tokens, layer.calls, layer.seconds] for name, layer in time.layers.items()
    }
    return {"total_s": time.total_s, "threads": time.threads, "layers": layers}


def time_from_data(data: dict[str, Any]) -> ModelTime:
    """Read what `time_to_data` wrote."""
    layers = {
        name: LayerTime((int(shape[0]), int(shape[1])), int(tokens), int(calls), float(seconds))
        for name, (shape, tokens, calls, seconds) in data["layers"].items()
    }
    return ModelTime(float(data["total_s"]), layers, int(data["threads"]))


def table_to_data(table: CostTable) -> dict[str, Any]:
    """Plain data of a cost table."""
    return {
        "names": list(table.names),
        "shapes": [list(shape) for shape in table.shapes],
        "choices": [[[str(c.pattern), c.value_dtype] for c in choices] for choices in table.choices],
        "seconds": {label: [list(row) for row in rows] for label, rows in table.seconds.items()},
        "rest_s": dict(table.rest_s),
        "size_bytes": [list(row) for row in table.size_bytes],
        "rest_bytes": table.rest_bytes,
        "reasons": {name: list(reasons) for name, reasons in table.reasons.items()},
    }


def table_from_data(data: dict[str, Any], edge: Edge = "error") -> CostTable:
    """Read what `table_to_data` wrote.

    Args:
        data: plain data.
        edge: how the run treats what a layer's end cuts off; no part of a pattern's text.

    Raises:
        ProfileError: the data are of another form.
    """
    try:
        return CostTable(
            names=tuple(data["names"]),
            shapes=tuple((int(out), int(in_)) for out, in_ in data["shapes"]),
            choices=tuple(tuple(_choice(text, kind, edge) for text, kind in row) for row in data["choices"]),
            seconds={label: tuple(tuple(row) for row in rows) for label, rows in data["seconds"].items()},
            rest_s={label: float(value) for label, value in data["rest_s"].items()},
            size_bytes=tuple(tuple(row) for row in data["size_bytes"]),
            rest_bytes=float(data["rest_bytes"]),
            reasons={name: tuple(reasons) for name, reasons in data["reasons"].items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"The stored costs are malformed ({error!r}). Run with --fresh to measure again.") from error


def _choice(text: str, kind: str, edge: Edge) -> Choice:
    # Through LayerPlan, so that an unknown value type is refused.
    layer = LayerPlan(parse_pattern(text).with_edge(edge), value_dtype=kind)  # type: ignore[arg-type]
    return Choice(layer.pattern, layer.value_dtype)
