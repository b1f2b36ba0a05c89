"""The search: every plan it weighed, the front between quality and latency, the same plans on other devices."""

from ..core import PatternError, parse_pattern
from .charts import front_chart
from .document import Block, Cell, Column, Section, Table, Text, cell, missing
from .schema import FrontPoint, Results
from .units import points, seconds, signed_points, size, times


def front_section(results: Results) -> Section | None:
    """The front as chart and table, or None where no search was run."""
    if not results.front:
        return None
    reference = results.quality.validation
    dense = reference.dense if reference is not None else None
    columns = (
        Column("plan", numeric=False),
        Column("kind", numeric=False),
        Column("predicted"),
        Column("measured"),
        Column("speed-up", hint="predicted, against dense"),
        Column("quality", hint="points on validation"),
        Column("change"),
        Column("bytes"),
        Column("layers per pattern", numeric=False),
    )
    ordered = sorted(results.front, key=lambda point: (not point.chosen, point.kind, _time(point)))
    strong = frozenset(index for index, point in enumerate(ordered) if point.chosen)
    caption = "Every plan the search weighed; quality on the validation split, never on test."
    table = Table(columns, tuple(_row(point) for point in ordered), caption, strong, folded=len(ordered) > 14)
    blocks: list[Block] = [front_chart(results.front, dense, results.budget.max_quality_drop), table]
    return Section("front", "Quality against latency", tuple(blocks), short="Front")


def _time(point: FrontPoint) -> float:
    time = point.measured_s if point.measured_s is not None else point.predicted_s
    return time if time is not None else float("inf")


def _row(point: FrontPoint) -> tuple[Cell, ...]:
    patterns = ", ".join(f"{number}× {pattern}" for pattern, number in _by_density(point.patterns))
    return (
        Cell(point.label + (" (chosen)" if point.chosen else "")),
        Cell(point.kind),
        cell(seconds(point.predicted_s), point.predicted_s is None),
        cell(seconds(point.measured_s), point.measured_s is None),
        cell(times(point.predicted_speedup), point.predicted_speedup is None),
        cell(points(point.quality), point.quality is None),
        _change(point),
        cell(size(point.size_bytes), point.size_bytes is None),
        Cell(patterns, code=True) if patterns else missing("–"),
    )


def _change(point: FrontPoint) -> Cell:
    if point.drop is not None:
        return Cell(signed_points(point.drop))
    if point.predicted_drop is not None:
        return Cell(f"{signed_points(point.predicted_drop)} predicted", "quiet")
    return missing()


def _by_density(patterns: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(patterns.items(), key=lambda item: density_order(item[0]))


def density_order(text: str) -> tuple[float, str]:
    """Sort key that puts denser patterns first; unknown texts come last."""
    try:
        return (-parse_pattern(text).density, text)
    except PatternError:
        return (1.0, text)


def devices_section(results: Results) -> Section | None:
    """Device × plan, or None where only one target was asked for."""
    if not results.devices:
        return None
    rows = [
        (
            Cell(row.target),
            Cell(row.plan),
            cell(seconds(row.predicted_s), row.predicted_s is None),
            cell(times(row.speedup), row.speedup is None),
        )
        for row in results.devices
    ]
    columns = (Column("device", numeric=False), Column("plan", numeric=False), Column("predicted"), Column("speed-up"))
    blocks: tuple[Block, ...] = (
        Table(columns, tuple(rows), "Predicted time and speed-up against dense on the same device."),
        Text("A profile measured on one machine says nothing certain about another of the same name: measure there."),
    )
    return Section("devices", "Devices", blocks)
