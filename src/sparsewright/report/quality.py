"""Quality: dense against ours per split and per slice, each difference with its paired interval."""

import math

from .charts import interval_chart
from .document import Block, Cell, Column, Section, Table, Text, cell, missing
from .schema import Interval, Pair, Results, SplitQuality
from .units import count, points, signed_points

MANY_SLICES = 12


def quality_section(results: Results) -> Section | None:
    """Splits, slices and further metrics, or None where nothing was evaluated."""
    splits = [
        (name, split)
        for name, split in (("validation", results.quality.validation), ("test", results.quality.test))
        if split is not None
    ]
    if not splits:
        return None
    blocks: list[Block] = [_split_table(splits, results)]
    if results.quality.test is None:
        blocks.append(Text("The test split was not opened in this run.", "quiet"))
    else:
        blocks.append(Text("The test split was opened once, after the search; search and calibration used other data."))
    marks = _marks(splits)
    if len(marks) > 1:
        blocks.append(interval_chart(marks, results.budget.max_quality_drop))
    for name, split in splits:
        if split.slices:
            blocks.append(_slice_table(name, split))
    extras = [(name, split) for name, split in splits if split.extra]
    blocks += [_extra_table(name, split) for name, split in extras]
    return Section("quality", "Quality", tuple(blocks))


def _split_table(splits: list[tuple[str, SplitQuality]], results: Results) -> Table:
    columns = (
        Column("split", numeric=False),
        Column("items"),
        Column("dense"),
        Column("one-shot", hint="sparsified, before recovery"),
        Column("ours"),
        Column("change", hint="points, ± one paired standard error"),
        Column("95 % interval", hint="of the paired differences, by bootstrap"),
    )
    rows = []
    for name, split in splits:
        spread = f" ± {points(split.stderr)}" if split.stderr is not None else ""
        change = missing() if split.drop is None else Cell(signed_points(split.drop) + spread)
        values = [cell(points(value), value is None) for value in (split.dense, split.one_shot, split.ours)]
        rows.append((Cell(name), _items(split.n), *values, change, _interval(split.interval)))
    task = f" on {results.data.task}" if results.data.task else ""
    return Table(columns, tuple(rows), f"{results.data.metric}{task}, in points. Negative means lost.")


def _slice_table(name: str, split: SplitQuality) -> Table:
    columns = (
        Column("slice", numeric=False),
        Column("items"),
        Column("dense"),
        Column("ours"),
        Column("change"),
        Column("95 % interval"),
    )
    worst = max((part.drop for part in split.slices if part.drop is not None), default=None)
    rows = []
    for part in sorted(split.slices, key=lambda part: -(part.drop if part.drop is not None else -math.inf)):
        tone = "bad" if part.drop is not None and part.drop == worst and part.drop > 0 else ""
        change = missing() if part.drop is None else Cell(signed_points(part.drop), "bad" if tone else "")
        values = [cell(points(value), value is None) for value in (part.dense, part.ours)]
        rows.append((Cell(part.name), _items(part.n), *values, change, _interval(part.interval)))
    caption = f"{len(rows)} slices of the {name} split, the worst first."
    return Table(columns, tuple(rows), caption, folded=len(rows) > MANY_SLICES)


def _extra_table(name: str, split: SplitQuality) -> Table:
    rows = []
    for metric, value in split.extra.items():
        pair = value if isinstance(value, Pair) else Pair(ours=value)
        rows.append(
            (Cell(metric), cell(points(pair.dense), pair.dense is None), cell(points(pair.ours), pair.ours is None))
        )
    columns = (Column("also measured", numeric=False), Column("dense"), Column("ours"))
    return Table(columns, tuple(rows), f"On the {name} split, × 100.")


def _interval(interval: Interval | None) -> Cell:
    """The interval of the change: the interval of the drop, turned round."""
    if interval is None:
        return missing()
    low, high = interval
    return Cell(f"{signed_points(high)} to {signed_points(low)}")


def _marks(splits: list[tuple[str, SplitQuality]]) -> list[tuple[str, float, Interval | None]]:
    """Everything with a drop: splits first, then the slices of the last split."""
    marks = [(f"{name} split", split.drop, split.interval) for name, split in splits if split.drop is not None]
    # Of many slices only the largest are drawn: the intervals of small ones tell nothing.
    largest = sorted(splits[-1][1].slices, key=lambda part: -(part.n or 0))[:MANY_SLICES]
    marks += [(part.name, part.drop, part.interval) for part in largest if part.drop is not None]
    return marks


def _items(number: int | None) -> Cell:
    return missing("–") if number is None else Cell(count(number))
