"""The end table: every way to run the model, side by side, and what each of them weighs."""

from .document import Block, Cell, Column, Section, Table, Text, cell, missing
from .headline import OURS
from .schema import Results, TableRow
from .units import percent, points, seconds, signed_points, significant, size, times


def end_table_section(results: Results) -> Section | None:
    """Quality, speed, throughput, bytes and load time of ours and of every rival, or None without a table."""
    if not results.table:
        return None
    batches = sorted({key for row in results.table for key in row.latency_s}, key=lambda text: (len(text), text))
    columns = [
        Column("", numeric=False),
        Column(results.data.metric),
        Column("change", hint="points against dense"),
        Column("in budget", numeric=False),
    ]
    for batch in batches:
        columns += [Column(f"batch {batch}", hint="median time"), Column("speed-up", hint="against torch fp32")]
    columns += [
        Column("per second", hint="inferences at the largest batch"),
        Column("file"),
        Column("load"),
    ]
    fastest = {batch: max((row.speedup.get(batch) or 0.0 for row in results.table), default=0.0) for batch in batches}
    rows = tuple(_row(row, batches, fastest) for row in results.table)
    strong = frozenset(index for index, row in enumerate(results.table) if row.name == OURS)
    caption = f"Quality in points ({results.data.metric} × 100); change against the dense model, ± one standard error."
    blocks: list[Block] = [Table(tuple(columns), rows, caption, strong)]
    if any(row.inside_budget is None for row in results.table):
        blocks.append(
            Text(
                "Where “in budget” reads “not measured”, a bound of the budget could not be checked for that row.",
                "quiet",
            )
        )
    blocks += [Text(f"{row.name}: {row.reason}", "quiet") for row in results.table if row.reason]
    return Section("table", "Side by side", tuple(blocks))


def _row(row: TableRow, batches: list[str], fastest: dict[str, float]) -> tuple[Cell, ...]:
    cells = [Cell(row.name), cell(points(row.quality), row.quality is None), _change(row), _inside(row)]
    for batch in batches:
        latency, speed = row.latency_s.get(batch), row.speedup.get(batch)
        cells.append(cell(seconds(latency), latency is None))
        bar = speed / fastest[batch] if speed and fastest[batch] else None
        cells.append(missing() if speed is None else Cell(times(speed), bar=bar))
    throughput = row.throughput_per_s
    cells.append(missing() if throughput is None else Cell(significant(throughput)))
    cells.append(cell(size(row.file_bytes), row.file_bytes is None))
    cells.append(cell(seconds(row.load_s), row.load_s is None))
    return tuple(cells)


def _inside(row: TableRow) -> Cell:
    if row.inside_budget is None:
        return missing()
    return Cell("yes", "good") if row.inside_budget else Cell("no", "bad")


def _change(row: TableRow) -> Cell:
    if row.drop is None:
        return missing()
    spread = f" ± {points(row.stderr)}" if row.stderr is not None else ""
    return Cell(f"{signed_points(row.drop)}{spread}")


def bytes_section(results: Results) -> Section | None:
    """File sizes against dense fp32 and fp16 and against what the patterns need in theory."""
    sizes = results.bytes
    named = (
        ("dense fp32", sizes.dense_fp32),
        ("dense fp16", sizes.dense_fp16),
        ("ours", sizes.ours),
        ("least the patterns need", sizes.theoretical),
    )
    if all(value is None for _, value in named):
        return None
    largest = max(value for _, value in named if value is not None)
    rows = []
    for name, value in named:
        if value is None:
            rows.append((Cell(name), missing(), missing()))
            continue
        share = cell(percent(value / sizes.dense_fp32, 1)) if sizes.dense_fp32 else missing()
        rows.append((Cell(name), Cell(size(value), bar=value / largest), share))
    blocks: list[Block] = [
        Table(
            (Column("whole model", numeric=False), Column("bytes"), Column("of dense fp32")),
            tuple(rows),
            "",
            frozenset({2}),
        )
    ]
    if sizes.ours and sizes.theoretical:
        blocks.append(
            Text(
                f"The file holds {sizes.ours / sizes.theoretical:.3f} times the bytes that its patterns need in theory "
                "(value bits × density + index bits); the rest is the manifest and padding.",
            )
        )
    return Section("bytes", "Bytes", tuple(blocks))
