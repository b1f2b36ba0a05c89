"""Where the figures come from: machine, versions, model, data, recipe, and how long each stage took."""

import json
from typing import Any

from .document import Block, Cell, Column, Section, Table, Text
from .schema import Results
from .units import count, percent, seconds, size

_LABELS = {
    "cpu": "processor",
    "cores": "cores",
    "isa": "instruction sets",
    "memory_bytes": "memory",
    "os": "system",
    "python": "Python",
    "torch": "torch",
    "threads": "threads",
    "fingerprint": "machine fingerprint",
}


def origin_section(results: Results) -> Section:
    """What a reader needs to repeat the run."""
    facts = [
        (_LABELS.get(key, key.replace("_", " ")), _text(key, value)) for key, value in _in_order(results.environment)
    ]
    model = results.model
    facts.append(("model", model.source + (f" ({model.family})" if model.family else "")))
    if model.parameters is not None:
        facts.append(("parameters", count(model.parameters)))
    if results.data.task:
        facts.append(("task", f"{results.data.task}, {results.data.metric}"))
    for name, split in (("validation", results.data.validation), ("test", results.data.test)):
        if split.n is not None:
            digest = f", sha256 {split.sha256[:16]}…" if split.sha256 else ""
            facts.append((f"{name} items", count(split.n) + digest))
    if results.recipe_sha256:
        facts.append(("recipe sha256", results.recipe_sha256))
    facts.append(("written by", f"{results.tool.name} {results.tool.version}".strip()))
    if results.created:
        facts.append(("written at", results.created))
    rows = tuple((Cell(name), Cell(value)) for name, value in facts)
    blocks: list[Block] = [Table((Column("", numeric=False), Column("", numeric=False)), rows)]
    if not results.environment:
        blocks.append(Text("The machine was not recorded, so these figures cannot be compared with others.", "bad"))
    if results.data.facts:
        blocks.append(_folded("data", results.data.facts))
    if results.recipe:
        blocks.append(_folded("recipe", results.recipe))
    return Section("origin", "Origin", tuple(blocks))


def _folded(what: str, facts: dict[str, Any]) -> Table:
    """Nested facts, one row per key, shown on request."""
    rows = []
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append((Cell(key, code=True), Cell(text, code=True)))
    columns = (Column(what, numeric=False), Column("", numeric=False))
    return Table(columns, tuple(rows), f"{what.capitalize()} in full.", folded=True)


def timings_section(results: Results) -> Section | None:
    """Seconds per stage, or None where they were not kept."""
    if not results.timings:
        return None
    total = sum(row.seconds for row in results.timings)
    longest = max(row.seconds for row in results.timings)
    rows = [
        (
            Cell(row.stage),
            Cell(seconds(row.seconds), bar=row.seconds / longest if longest else None),
            Cell(percent(row.seconds / total) if total else "–"),
        )
        for row in results.timings
    ]
    rows.append((Cell("all stages"), Cell(seconds(total)), Cell("100 %")))
    columns = (Column("stage", numeric=False), Column("time"), Column("share"))
    return Section("timings", "Stages", (Table(columns, tuple(rows), "", frozenset({len(rows) - 1})),))


def _in_order(environment: dict[str, Any]) -> list[tuple[str, Any]]:
    known = [(key, environment[key]) for key in _LABELS if environment.get(key) is not None]
    return known + [(key, value) for key, value in environment.items() if key not in _LABELS and value is not None]


def _text(key: str, value: Any) -> str:
    if key == "memory_bytes" and isinstance(value, int | float):
        return size(float(value))
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)
