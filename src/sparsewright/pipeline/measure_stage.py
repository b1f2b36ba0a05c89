"""Stage: time our file, the dense model and the rivals interleaved in one run, and score each on the test split."""

from dataclasses import asdict, replace
from typing import Any

from torch import nn

from ..hardware import MeasuredRow, Measurement, Rival, build_rivals, measure
from ..models.tasks import Quality, paired_difference
from ..search import CostTable
from .deliver import BUNDLE, reload_here
from .inside_budget import inside_budget, inside_quality
from .plan_search import Settled
from .session import Session

DENSE = "torch fp32"
OURS = "ours"
WITHIN = 0.10


def measure_stage(
    session: Session, kept: dict[str, Any], checked: dict[str, Any], tables: dict[str, CostTable], settled: Settled
) -> dict[str, Any]:
    """Latency, throughput, bytes, load time, memory, energy and test quality of every candidate.

    Where the bundle cannot build the model by itself, load time and memory of our file are those of the verify stage,
    whose fresh process took the structure from the recipe's source.
    """
    section = session.recipe.measure
    depends = {"sha256": kept["sha256"], "measure": section.model_dump(), "weights": session.weights_digest}
    table = tables[session.recipe.target[0]]
    measured = session.folder.stage("measure", depends, lambda: _measured(session, table, settled))
    for row in measured["table"]:
        if row["name"] == OURS and row["load_s"] is None:
            fresh = checked["fresh"]
            row |= {key: fresh[key] for key in ("load_s", "peak_rss_bytes")}
            row |= {"cold_start_s": (fresh["import_s"] or 0.0) + fresh["cold_start_s"], "reason": ""}
    return measured


def _measured(session: Session, table: CostTable, settled: Settled) -> dict[str, Any]:
    section = session.recipe.measure
    path = session.folder.path / BUNDLE
    ours = reload_here(session, path)
    rivals = _rivals(session)
    loaders = {OURS: ("sparsewright.bundle:load", str(path))}
    if session.recipe.train is None:
        loaders[DENSE] = ("sparsewright.models:load_model", session.recipe.model)
    runs: dict[str, Measurement] = {}
    for size in section.batches:
        session.folder.report("measure", f"batch {size}", len(runs) / (len(section.batches) + 1))
        runs[str(size)] = measure(
            ours,
            session.task.bench_batch(size, section.length),
            rivals,
            dense=session.dense,
            threads=section.threads,
            seconds=section.seconds / len(section.batches),
            loaders=loaders,
            file_bytes={OURS: path.stat().st_size},
            energy_seconds=section.energy_seconds,
        )
        # Load times are the same at every batch size; one fresh process each is enough.
        loaders = {}
        rivals = [replace(rival, loader="") for rival in rivals]
    session.folder.report("measure", "quality of the rivals", 0.9)
    scored = _scored(session, ours, rivals)
    table_rows = [_table_row(session, name, runs, scored) for name in _names(runs)]
    return {
        "latency": [
            _latency_row(row, int(label), session) for label, run in runs.items() for row in run.rows if row.p50_s
        ],
        "table": table_rows,
        "prediction": _prediction(runs, table, settled),
        "energy": _energy(runs),
        "energy_windows": [asdict(window) for run in runs.values() for window in run.windows],
        "rivals_not_measured": {row.name: row.reason for row in next(iter(runs.values())).rows if row.p50_s is None},
    }


def _rivals(session: Session) -> list[Rival]:
    section = session.recipe.measure
    if section.rivals == "none":
        return []
    batch = session.task.bench_batch(min(section.batches), section.length)
    source = session.recipe.model if session.recipe.train is None else ""
    folder = session.folder.path / "rivals"
    folder.mkdir(exist_ok=True)
    return build_rivals(session.dense, batch, "all", folder=folder, threads=section.threads, source=source)


def _names(runs: dict[str, Measurement]) -> list[str]:
    return [row.name for row in next(iter(runs.values())).rows]


def _scored(session: Session, ours: nn.Module, rivals: list[Rival]) -> dict[str, Quality]:
    """Test quality of every candidate that runs; the test split is open by now."""
    session.task.open_test()
    scored = {DENSE: session.score("dense", session.dense, "test"), OURS: session.score("ours", ours, "test")}
    for rival in rivals:
        if rival.model is not None:
            scored[rival.name] = session.score(f"rival-{rival.name.replace(' ', '-')}", rival.model, "test")
    return scored


def _table_row(session: Session, name: str, runs: dict[str, Measurement], scored: dict[str, Quality]) -> dict[str, Any]:
    rows = {label: run.row(name) for label, run in runs.items()}
    first, last = next(iter(rows.values())), list(rows.values())[-1]
    row: dict[str, Any] = {
        "name": name,
        "latency_s": {label: found.p50_s for label, found in rows.items()},
        "speedup": {label: found.speedup for label, found in rows.items()},
        "throughput_per_s": last.throughput_per_s,
        "file_bytes": first.file_bytes,
        "load_s": first.load_s,
        "cold_start_s": first.cold_start_s,
        "peak_rss_bytes": first.peak_rss_bytes,
        "reason": first.reason,
    }
    quality, dense = scored.get(name), scored[DENSE]
    row["inside_quality"] = inside_quality(session, quality, dense)
    row["inside_budget"] = inside_budget(session, quality, dense, row["speedup"], row["file_bytes"])
    if quality is not None:
        difference = paired_difference(quality, dense)
        row |= {"quality": quality.value, "drop": 0.0 - difference.mean, "stderr": difference.standard_error}
    return row


def _latency_row(row: MeasuredRow, batch: int, session: Session) -> dict[str, Any]:
    section = session.recipe.measure
    return {
        "name": row.name,
        "batch": batch,
        "length": section.length,
        "threads": section.threads,
        "p50_s": row.p50_s,
        "p95_s": row.p95_s,
        "p99_s": row.p99_s,
        "cpu_s": row.cpu_s,
        "speedup": row.speedup,
        "speedup_interval": list(row.speedup_interval) if row.speedup_interval else None,
    }


def _prediction(runs: dict[str, Measurement], table: CostTable, settled: Settled) -> dict[str, Any]:
    """Predicted against measured end to end.

    The prediction is a speed-up over dense; it is held against the dense time of this very run, since the clock of a
    shared machine differs between runs.
    """
    rows = []
    for label, run in runs.items():
        dense, ours = run.row(DENSE), run.row(OURS)
        dense_s, ours_s = dense.cpu_s or dense.p50_s, ours.cpu_s or ours.p50_s
        assert dense_s is not None
        assert ours_s is not None
        predicted = dense_s / table.speedup(settled.pick.choices, label)
        miss = abs(predicted - ours_s) / ours_s
        rows.append({"batch": int(label), "predicted_s": predicted, "measured_s": ours_s, "miss": miss})
    worst = max(row["miss"] for row in rows)
    return {"rows": rows, "worst_miss": worst, "within_10_percent": worst <= WITHIN}


def _energy(runs: dict[str, Measurement]) -> dict[str, Any] | None:
    run = next(iter(runs.values()))
    rows = {row.name: row.energy_j / run.items for row in run.rows if row.energy_j is not None}
    return {"source": "RAPL, whole package", "joules_per_inference": rows} if rows else None
