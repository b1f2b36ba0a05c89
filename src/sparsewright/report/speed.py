"""Time: percentiles per batch, cold start and memory, what was predicted, and the energy where it could be read."""

from collections.abc import Mapping

from .document import Block, Cell, Column, Section, Table, Text, cell, missing
from .headline import DENSE, OURS, misses
from .schema import Results
from .units import percent, seconds, significant, size, times


def latency_section(results: Results) -> Section | None:
    """Percentiles, cold start and peak memory, or None where nothing was timed."""
    if not results.latency:
        return None
    columns = (
        Column("", numeric=False),
        Column("batch"),
        Column("length"),
        Column("threads"),
        Column("p50"),
        Column("p95"),
        Column("p99"),
        Column("CPU time", hint="processor seconds per call"),
        Column("speed-up", hint="against torch fp32"),
        Column("95 % interval"),
    )
    ordered = sorted(results.latency, key=lambda row: row.batch)
    rows = []
    for row in ordered:
        spread = row.speedup_interval
        whole = [
            Cell(str(value)) if value is not None else missing("–") for value in (row.batch, row.length, row.threads)
        ]
        timed = [cell(seconds(value), value is None) for value in (row.p50_s, row.p95_s, row.p99_s, row.cpu_s)]
        rows.append(
            (
                Cell(row.name),
                *whole,
                *timed,
                cell(times(row.speedup), row.speedup is None),
                missing() if spread is None else Cell(f"{times(spread[0])} to {times(spread[1])}"),
            )
        )
    strong = frozenset(index for index, row in enumerate(ordered) if row.name == OURS)
    blocks: list[Block] = [Table(columns, tuple(rows), "Time of one call, percentiles over repeated calls.", strong)]
    start = _start_table(results)
    if start is not None:
        blocks.append(start)
    return Section("latency", "Latency and memory", tuple(blocks), short="Latency")


def _start_table(results: Results) -> Table | None:
    timed = [row for row in results.table if row.cold_start_s is not None or row.peak_rss_bytes is not None]
    if not timed:
        return None
    rows = tuple(
        (
            Cell(row.name),
            cell(seconds(row.load_s), row.load_s is None),
            cell(seconds(row.cold_start_s), row.cold_start_s is None),
            cell(size(row.peak_rss_bytes), row.peak_rss_bytes is None),
        )
        for row in timed
    )
    columns = (
        Column("", numeric=False),
        Column("load"),
        Column("cold start", hint="load and first call, in a fresh process"),
        Column("peak memory", hint="resident"),
    )
    strong = frozenset(index for index, row in enumerate(timed) if row.name == OURS)
    return Table(columns, rows, "In a fresh process.", strong)


def prediction_section(results: Results) -> Section | None:
    """Predicted against measured end-to-end time, or None where nothing was predicted."""
    prediction = results.prediction
    if not prediction.rows:
        return None
    rows = []
    for row in prediction.rows:
        far = row.miss is not None and abs(row.miss) > 0.10
        rows.append(
            (
                Cell(str(row.batch)),
                cell(seconds(row.predicted_s), row.predicted_s is None),
                cell(seconds(row.measured_s), row.measured_s is None),
                missing() if row.miss is None else Cell(percent(row.miss, 1), "bad" if far else "good"),
            )
        )
    columns = (Column("batch"), Column("predicted"), Column("measured"), Column("miss", hint="of the measured time"))
    table = Table(columns, tuple(rows), "Whole model, end to end.")
    if misses(results):
        verdict = Text(
            "The prediction misses by more than 10 %. The plan was chosen on predicted times, so another plan may be "
            "better: profile this machine again while it is quiet, then search again.",
            "bad",
        )
    else:
        verdict = Text("Every prediction lies within 10 % of its measurement.", "good")
    return Section("prediction", "Predicted against measured", (table, verdict), short="Prediction")


def energy_section(results: Results) -> Section | None:
    """Joules per inference and where they were read, or None where they were not."""
    energy = results.energy
    if energy is None or not energy.joules_per_inference:
        return None
    by_batch = energy.by_batch or {"": energy.joules_per_inference}
    names = list(dict.fromkeys(name for spent in by_batch.values() for name in spent))
    rows = tuple((Cell(name), *_spent_cells(by_batch, name)) for name in names)
    strong = frozenset(index for index, name in enumerate(names) if name == OURS)
    columns = [Column("", numeric=False)]
    for batch in by_batch:
        columns += [Column(f"batch {batch}" if batch else "per inference", hint="energy of one inference")]
        columns += [Column("of torch fp32")]
    source = energy.source or "an unnamed source"
    # At the beginning only: a meter's file may be called anything.
    estimated = source.lower().startswith("estimate")
    note = Text(f"Source: {source}.", "bad" if estimated else "")
    caption = "Per inference. Estimated, not measured." if estimated else "Per inference. Measured."
    return Section("energy", "Energy", (Table(tuple(columns), rows, caption, strong), note))


def _spent_cells(by_batch: Mapping[str, Mapping[str, float]], name: str) -> list[Cell]:
    cells = []
    for spent in by_batch.values():
        joules, dense = spent.get(name), spent.get(DENSE)
        cells.append(missing() if joules is None else Cell(f"{significant(1e3 * joules)} mJ"))
        cells.append(Cell(percent(joules / dense)) if joules is not None and dense else missing("–"))
    return cells
