"""`run`: the stage order, from a recipe to a verified bundle and a report. Every stage resumes by itself."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from ..core import Plan, read_json, write_json, write_text
from ..hardware import keep_freed_memory
from ..models.tasks import tasks
from ..report import write_report
from .compress import train_stage
from .costs import cost_stage, table_from_data
from .deliver import BUNDLE, save_stage, verify_stage
from .folder import Report, RunFolder, digest, silent
from .measure_stage import measure_stage
from .plan_search import PlanSearch, Settled, sensitivity_stage
from .quality import test_stage
from .recipe import Recipe, load_recipe
from .results import assemble
from .session import Session

STAGES = (
    ("train", "train the dense model, where the recipe asks for it"),
    ("costs", "time every layer and pattern on the target"),
    ("sensitivity", "calibrate: what each pattern costs each layer"),
    ("search", "find the fastest plan inside the budget on validation"),
    ("recover", "sparsify under the plan and distil from the dense model"),
    ("save", "pack and write the bundle"),
    ("verify", "check every byte, reload in a fresh process, compare the answers"),
    ("test", "open the test split once"),
    ("measure", "time ours against the rivals in one run"),
    ("report", "write results.json, report.html and report.md"),
)


@final
@dataclass(frozen=True)
class RunResult:
    """Where a run left its results.

    Attributes:
        folder: the run folder.
        bundle: the packed model.
        plan: what was done to each layer.
        results: what `results.json` holds.
    """

    folder: Path
    bundle: Path
    plan: Plan
    results: dict[str, Any]


def run_folder_of(recipe: Recipe, source: str | Path | None) -> Path:
    """The recipe's own run folder, or `runs/NAME` beside the working folder."""
    if recipe.run_folder:
        return Path(recipe.run_folder)
    return Path("runs") / (Path(source).stem if source is not None else "recipe")


def run(
    recipe: str | Path | Recipe | dict[str, Any],
    folder: str | Path | None = None,
    *,
    fresh: bool = False,
    progress: Report = silent,
) -> RunResult:
    """Run a recipe from beginning to end, or go on where an earlier process stopped.

    Args:
        recipe: path of a YAML file, a loaded recipe, or plain data.
        folder: run folder; the recipe's own where None.
        fresh: forget what earlier processes did in this folder.
        progress: `(stage, what, share done)`.

    Returns:
        Paths and results; the folder holds `plan.json`, `model.safetensors`, `results.json`, `report.html`,
        `report.md`, `events.jsonl`.

    Raises:
        SparsewrightError: any user's mistake, in one sentence; nothing half-written is left.
    """
    # A run owns its process: without this, dense time would hold page faults that no server has in steady state.
    keep_freed_memory()
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    source = recipe if isinstance(recipe, str | Path) else None
    path = Path(folder) if folder is not None else run_folder_of(loaded, source)
    where = RunFolder(path, fresh, progress)
    where.event("run", recipe=digest(loaded.to_data()))
    session = Session(loaded, where)
    threads = torch.get_num_threads()
    try:
        # Every core for calibration and recovery; what is timed sets its own number.
        torch.set_num_threads(_cores())
        return _stages(session)
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stages(session: Session) -> RunResult:
    recipe, where = session.recipe, session.folder
    session.require_fitting_task()
    train_stage(session)
    depends = {
        "weights": session.weights_digest,
        "train": None if recipe.train is None else recipe.train.model_dump(),
        "target": [_target_key(name) for name in recipe.target],
        "sparsify": recipe.sparsify.model_dump(),
        "measure": [list(recipe.measure.batches), recipe.measure.length, recipe.measure.threads],
        "save": recipe.save.model_dump(),
    }
    costs = where.stage("costs", depends, lambda: cost_stage(session))
    tables = {name: table_from_data(data, session.recipe.sparsify.edge) for name, data in costs["tables"].items()}
    table = tables[recipe.target[0]]
    sensitivity = sensitivity_stage(session, table)
    search = PlanSearch(session, table, sensitivity)
    settled = search.settle()
    search.judge_best_uniform(settled)
    write_text(where.path / "plan.json", settled.plan.to_json() + "\n")
    kept = save_stage(session, settled)
    checked = verify_stage(session, kept)
    tested = test_stage(session, kept["sha256"])
    measured = measure_stage(session, kept, checked, tables, settled)
    where.report("report", "started", 0.0)
    results = assemble(session, search, settled, tables, kept, checked, tested, measured)
    write_json(where.path / "results.json", results)
    write_report(results, where.path)
    where.event("done")
    where.report("report", "done", 1.0)
    return RunResult(where.path, where.path / BUNDLE, settled.plan, results)


def _target_key(name: str) -> Any:
    """What a target's costs depend on: a file's content, or its name."""
    return read_json(name) if name.endswith(".json") else name


def dry_run(recipe: str | Path | Recipe) -> list[str]:
    """What a run would do, without doing it: the stages, one line each; checks recipe, model and layers."""
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    source = None if isinstance(recipe, Recipe) else recipe
    path = run_folder_of(loaded, source)
    if not loaded.task.name.startswith("python:"):
        tasks.get(loaded.task.name)
    # A folder that goes away: looking leaves nothing behind.
    with tempfile.TemporaryDirectory() as place:
        session = Session(loaded, RunFolder(Path(place)))
        taking_part, patterns = len(session.candidates), len(session.patterns)
    lines = [f"run folder: {path}", f"model: {loaded.model}, {taking_part} layers can be sparse, {patterns} patterns"]
    for name, what in STAGES:
        if name == "train" and loaded.train is None:
            continue
        if name == "recover" and not loaded.recover.enabled:
            what = "sparsify under the plan (recovery is off)"
        done = (path / "stages" / f"{name}.json").exists()
        lines.append(f"{name}: {what}" + (" (ran before; used again if nothing changed)" if done else ""))
    return lines


__all__ = ["STAGES", "RunResult", "Settled", "dry_run", "run", "run_folder_of"]
