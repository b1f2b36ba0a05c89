"""Layers: how much each pattern would hurt each layer, what was chosen there, and why some stay dense."""

import math

from .document import Block, Cell, Column, Section, Table, Text, cell, missing
from .plans import density_order
from .schema import Layer, Results, Sensitivity
from .units import percent, seconds, significant, size, times


def heat_section(results: Results) -> Section | None:
    """The layer × pattern map of errors, or None without a sensitivity scan."""
    known = {(entry.layer, entry.pattern): entry for entry in results.sensitivity}
    if not known:
        return None
    patterns = sorted({pattern for _, pattern in known}, key=density_order)
    names = list(dict.fromkeys([layer.name for layer in results.layers] + [layer for layer, _ in known]))
    chosen = {layer.name: layer for layer in results.layers}
    errors = sorted(entry.error for entry in known.values() if entry.error is not None)
    rows = []
    for name in names:
        layer = chosen.get(name)
        cells = [Cell(name, code=True, hint=layer.reason if layer else "")]
        cells += [_heat_cell(known.get((name, pattern)), pattern, layer, errors) for pattern in patterns]
        cells.append(Cell(layer.choice, code=True, hint=layer.reason) if layer else missing("–"))
        rows.append(tuple(cells))
    columns = (
        Column("layer", numeric=False),
        *(Column(pattern) for pattern in patterns),
        Column("chosen", numeric=False),
    )
    legend = (significant(errors[0], 2), significant(errors[-1], 2)) if errors else ("", "")
    caption = "Error on calibration data if only this layer took this pattern. The outlined cell was chosen."
    table = Table(columns, tuple(rows), caption, heat=True, legend=legend)
    return Section("sensitivity", "Sensitivity of layers", (table,), short="Sensitivity")


def _heat_cell(entry: Sensitivity | None, pattern: str, layer: Layer | None, errors: list[float]) -> Cell:
    if entry is None or entry.error is None:
        return missing("–")
    low, high = max(errors[0], 1e-12), max(errors[-1], 1e-12)
    # Errors span decades, so the colour follows the logarithm.
    heat = math.log(max(entry.error, low) / low) / math.log(high / low) if high > low else 0.0
    chosen = layer is not None and layer.pattern == pattern
    hint = f"{entry.layer}, {pattern}: error {significant(entry.error)}"
    if entry.cost_s is not None:
        hint += f", {seconds(entry.cost_s)}"
    if layer is not None and layer.dense_s is not None:
        hint += f" (dense {seconds(layer.dense_s)})"
    if chosen and layer is not None and layer.reason:
        hint += f". Chosen: {layer.reason}"
    return Cell(significant(entry.error, 2), hint=hint, heat=heat, chosen=chosen)


def layers_section(results: Results) -> Section | None:
    """Every layer of the plan; those left dense first, with their reasons."""
    if not results.layers:
        return None
    dense = [layer for layer in results.layers if layer.is_untouched]
    blocks: list[Block] = [Text(layer_counts(results))]
    if dense:
        rows = tuple(
            (
                Cell(layer.name, code=True),
                Cell(_shape(layer)),
                Cell(layer.reason) if layer.reason else missing("no reason given"),
            )
            for layer in dense
        )
        heads = (Column("left dense", numeric=False), Column("out × in"), Column("why", numeric=False))
        blocks.append(Table(heads, rows, "Layers left dense, and why."))
    columns = (
        Column("layer", numeric=False),
        Column("out × in"),
        Column("pattern", numeric=False),
        Column("density"),
        Column("values", numeric=False),
        Column("layout", numeric=False),
        Column("sparsifier", numeric=False),
        Column("dense"),
        Column("predicted"),
        Column("gain"),
        Column("bytes"),
        Column("why", numeric=False),
    )
    blocks.append(
        Table(columns, tuple(_layer_row(layer) for layer in results.layers), "Every layer of the plan.", folded=True)
    )
    return Section("layers", "Layers", tuple(blocks))


def layer_counts(results: Results) -> str:
    """How many layers became what, in one sentence."""
    sparse = [layer for layer in results.layers if layer.pattern != "dense"]
    int8 = [layer for layer in results.layers if layer.value_dtype == "int8"]
    untouched = [layer for layer in results.layers if layer.is_untouched]
    rounded = f" ({sum(layer.value_dtype == 'int8' for layer in sparse)} of them int8)" if int8 else ""
    dense_int8 = sum(layer.pattern == "dense" for layer in int8)
    middle = f", {dense_int8} are dense int8" if dense_int8 else ""
    return f"{len(sparse)} of {len(results.layers)} layers are sparse{rounded}{middle}, {len(untouched)} stay dense."


def _shape(layer: Layer) -> str:
    return " × ".join(str(side) for side in layer.shape) or "–"


def _layer_row(layer: Layer) -> tuple[Cell, ...]:
    gain = layer.dense_s / layer.predicted_s if layer.dense_s and layer.predicted_s else None
    return (
        Cell(layer.name, code=True),
        Cell(_shape(layer)),
        Cell(layer.pattern, code=True),
        cell(percent(layer.density), layer.density is None),
        Cell(layer.value_dtype or "–"),
        Cell(layer.layout or "–"),
        Cell(layer.sparsifier or "–"),
        cell(seconds(layer.dense_s), layer.dense_s is None),
        cell(seconds(layer.predicted_s), layer.predicted_s is None),
        cell(times(gain), gain is None),
        cell(size(layer.bytes), layer.bytes is None),
        Cell(layer.reason) if layer.reason else missing("–"),
    )
