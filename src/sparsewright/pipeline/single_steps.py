"""Single steps of the pipeline, for a recipe or a bare model: what `search`, `sparsify`, `train`, `pack`, `bench` call.

Files between steps are plain safetensors state dicts with masks beside the weights, and the plan beside them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..bundle import inspect, load, save
from ..core import DataError, Edge, FileError, ModelError, Plan, ValueType, write_text
from ..hardware import Measurement, PackedLayer, Profile, measure, pack_
from ..hardware.random_batch import random_batch
from ..models import SparsifyResult, adopt_masks_, load_model, sparsify_
from ..models.sources import hf_folder, tokenizer_of
from ..search import Budget, SearchResult, search
from ..training import Recovery, recover
from .compress import LOSS_OF_FAMILY
from .folder import Report, RunFolder, silent
from .recipe import load_recipe
from .run import run_folder_of
from .session import Session, load_weights, save_weights
from .streaming import sparsify_file

PlanText = str | Path | Plan


def is_recipe(subject: str) -> bool:
    """Whether a command's subject is a recipe file rather than a model source."""
    return subject.endswith((".yaml", ".yml"))


def session_of(recipe_path: str | Path, report: Report = silent) -> Session:
    """A recipe's session in its run folder."""
    recipe = load_recipe(recipe_path)
    return Session(recipe, RunFolder(run_folder_of(recipe, recipe_path), report=report))


def read_plan(plan: PlanText) -> str | Plan:
    """A plan from a JSON file, or a pattern text as it stands."""
    if isinstance(plan, Plan) or not str(plan).endswith(".json"):
        return plan if isinstance(plan, Plan) else str(plan)
    try:
        return Plan.from_json(Path(plan).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"The plan {plan} cannot be read: {error}. Check the path.") from error


def plan_beside(weights: str | Path) -> Path:
    """Where the plan of a file of weights is kept."""
    return Path(weights).with_suffix(".plan.json")


def search_recipe(recipe_path: str | Path, budget: Budget | None = None, target: str | None = None) -> SearchResult:
    """Search a plan for a recipe's model on its task, without recovery.

    Args:
        recipe_path: a YAML file.
        budget: instead of the recipe's.
        target: instead of the recipe's first.
    """
    session = session_of(recipe_path)
    recipe, task = session.recipe, session.task
    section = recipe.measure
    return search(
        session.dense,
        task.calibration(),
        evaluate=lambda model: task.score(model, "validation").value,
        target=target or recipe.target[0],
        budget=budget or recipe.budget.as_budget(),
        patterns=recipe.sparsify.patterns,
        value_dtypes=recipe.sparsify.value_dtypes,
        method=recipe.sparsify.method,
        batches={f"batch {size}": task.bench_batch(size, section.length) for size in section.batches},
        evaluations=recipe.search.evaluations,
        include=recipe.sparsify.include or None,
        exclude=recipe.sparsify.exclude or None,
        threads=section.threads,
        seed=recipe.seed,
    )


def sparsify_to(
    subject: str,
    plan: PlanText,
    out: str | Path,
    *,
    method: str | None = None,
    edge: Edge | None = None,
    value_dtype: ValueType | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> SparsifyResult:
    """Sparsify a model in one shot and write its weights with their masks.

    Args:
        subject: recipe file, or model source (then only methods without data can be used).
        plan: plan file, or a pattern for every layer.
        out: goal, safetensors; the plan is written beside it as `.plan.json`.
        method: default the recipe's; `magnitude` for a bare model.
        edge: what becomes of tiles that a layer's end cuts off, see `sparsify_`; default the recipe's, or `error`.
        value_dtype: of all layers, over the plan's; `int8` rounds in the same pass.
        progress: `(done, total, layer)`.
    """
    chosen = read_plan(plan)
    if is_recipe(subject):
        session = session_of(subject)
        section = session.recipe.sparsify
        model = session.dense
        done = sparsify_(
            model,
            chosen,
            method=method or section.method,
            edge=edge or section.edge,
            value_dtype=value_dtype,
            data=session.task.calibration(),
            include=section.include or None,
            exclude=section.exclude or None,
            progress=progress,
        )
    else:
        model = load_model(subject).model
        done = sparsify_(
            model,
            chosen,
            method=method or "magnitude",
            edge=edge or "error",
            value_dtype=value_dtype,
            progress=progress,
        )
    save_weights(model, Path(out))
    write_text(plan_beside(out), done.plan.to_json() + "\n")
    return done


def adopt_to(subject: str, masks: str | Path, out: str | Path) -> SparsifyResult:
    """Take over masks or zeros made elsewhere, and write the weights with them as `sparsify_to` does.

    Args:
        subject: recipe file or model source.
        masks: file of masks, see `adopt_masks_`; or `zeros`: those of the model's own weights.
        out: goal, safetensors; the plan is written beside it as `.plan.json`.
    """
    model = load_model(load_recipe(subject).model if is_recipe(subject) else subject).model
    done = adopt_masks_(model, None if str(masks) == "zeros" else masks)
    save_weights(model, Path(out))
    write_text(plan_beside(out), done.plan.to_json() + "\n")
    return done


def stream_to(
    subject: str,
    plan: PlanText,
    out: str | Path,
    *,
    method: str | None = None,
    edge: Edge | None = None,
    value_dtype: ValueType | None = None,
    engine: str = "local",
    resume: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> SparsifyResult:
    """Sparsify a model of transformers that does not fit into memory, block by block, from disk to disk.

    Args:
        subject: recipe file whose model is `hf:FOLDER`; or such a model source, a folder or a file, for methods without
            data.
        plan: plan file, or a pattern for every layer.
        out: goal, a file (`.safetensors`) or a folder.
        method: default the recipe's; `magnitude` for a bare model.
        edge, value_dtype: see `sparsify_to`.
        engine, resume, progress: see `sparsify_file`.

    Raises:
        ModelError: the recipe's model is no local folder.
    """
    chosen = read_plan(plan)
    if not is_recipe(subject):
        source = hf_folder(subject.removeprefix("hf:")) if subject.startswith("hf:") else Path(subject)
        return sparsify_file(
            source,
            out,
            chosen,
            method=method or "magnitude",
            edge=edge or "error",
            value_dtype=value_dtype,
            engine=engine,
            resume=resume,
            progress=progress,
        )
    session = session_of(subject)
    section, model = session.recipe.sparsify, session.recipe.model
    if not model.startswith("hf:"):
        raise ModelError(f"Models are streamed from a folder on disk (hf:FOLDER), the recipe has {model!r}.")
    return sparsify_file(
        hf_folder(model.removeprefix("hf:")),
        out,
        chosen,
        method=method or section.method,
        edge=edge or section.edge,
        value_dtype=value_dtype,
        data=session.task_for(tokenizer_of(model)).calibration(),
        include=section.include or None,
        exclude=section.exclude or None,
        engine=engine,
        resume=resume,
        progress=progress,
    )


def train_to(
    recipe_path: str | Path,
    weights: str | Path,
    out: str | Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    schedule: str | None = None,
    every: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Recovery:
    """Recover a sparsified model by distillation from the dense one; goes on from its checkpoint after a kill.

    Args:
        recipe_path: names model and data.
        weights: what `sparsify_to` wrote.
        out: goal, safetensors.
        steps, minutes: one of them, instead of the recipe's.
        schedule, every: how masks move meanwhile, instead of the recipe's.
        progress: `(step, steps, loss)`.
    """
    session = session_of(recipe_path)
    section = session.recipe.recover
    own = steps is None and minutes is None
    options: dict[str, Any] = {} if section.lr is None else {"lr": section.lr}
    model = session.copy_of_dense()
    _read_weights(model, weights)
    checkpoint = Path(out).with_suffix(".checkpoint")
    done = recover(
        model,
        session.dense,
        session.task.recovery(),
        steps=section.steps if own else steps,
        minutes=section.minutes if own else minutes,
        family=LOSS_OF_FAMILY[session.loaded.family],
        blocks=session.block_names,
        seed=session.recipe.seed,
        mask_schedule=section.schedule if schedule is None else schedule,
        mask_every=section.every if every is None else every,
        checkpoint=checkpoint,
        progress=progress,
        **options,
    )
    save_weights(model, Path(out))
    if plan_beside(weights).is_file():
        write_text(plan_beside(out), plan_beside(weights).read_text(encoding="utf-8"))
    checkpoint.unlink(missing_ok=True)
    return done


def pack_to(
    subject: str,
    weights: str | Path,
    out: str | Path,
    *,
    plan: PlanText | None = None,
    target: str = "this",
    force: bool = False,
    dense_dtype: Literal["fp32", "fp16"] = "fp32",
    value_dtype: Literal["fp32", "fp16", "int8"] | None = None,
) -> list[PackedLayer]:
    """Pack the masked layers that win on a target and write the bundle.

    Args:
        subject: recipe file or model source: the architecture.
        weights: what `sparsify_to` or `train_to` wrote.
        out: goal.
        plan: plan file that the weights were made with; default the one beside them; without any, patterns are read off
            the masks.
        target: says what wins.
        force: pack without asking the target.
        dense_dtype: how tensors that are not sparse are stored.
        value_dtype: how kept values are stored; floats run as they were packed, int8 as int8.
    """
    source = load_recipe(subject).model if is_recipe(subject) else subject
    model = load_model(source).model
    _read_weights(model, weights)
    if plan is None and plan_beside(weights).is_file():
        plan = plan_beside(weights)
    chosen = read_plan(plan) if plan is not None else None
    if isinstance(chosen, str):
        raise ModelError(f"Packing takes a plan file ending in .json, got {chosen!r}. Leave it out to read the masks.")
    if value_dtype == "int8":
        rows = pack_(model, target, plan=chosen, force=force, value_dtype="int8")
        save(model, out, dense_dtype=dense_dtype, source=source)
        return rows
    rows = pack_(model, target, plan=chosen, force=force)
    save(model, out, dense_dtype=dense_dtype, value_dtype=value_dtype, plan=chosen, source=source)
    return rows


def _read_weights(model: nn.Module, weights: str | Path) -> None:
    from safetensors import SafetensorError

    if not Path(weights).is_file():
        raise FileError(f"{weights} is no file. Write it first with `sparsewright sparsify`.")
    try:
        load_weights(model, Path(weights))
    except SafetensorError as error:
        raise FileError(f"{weights} cannot be read ({error}). Write it again with `sparsewright sparsify`.") from error


def bench(
    subject: str,
    *,
    model: str | None = None,
    batches: Sequence[int] = (1, 32),
    length: int = 64,
    threads: int = 1,
    seconds: float = 20.0,
    rivals: Literal["all", "none"] = "all",
    report: Report = silent,
) -> dict[str, Measurement]:
    """Time a bundle, or a dense model, against rivals built from the dense model.

    Args:
        subject: a bundle file or a model source.
        model: source of the dense model; default what the bundle names.
        batches: batch sizes; inputs are random.
        length: tokens per item.
        threads: intra-op threads.
        seconds: per batch size.
        rivals: `all` or `none`.
        report: told about progress.

    Returns:
        Batch size as text -> measurement.

    Raises:
        DataError: no batch sizes.
        ModelError: rivals are asked for and nothing tells which dense model they come from.
    """
    if not batches:
        raise DataError("Benchmarks need at least one batch size.")
    ours, dense, file_bytes, loaders = _candidates(subject, model)
    if dense is None and rivals == "all":
        raise ModelError(
            f"{subject} does not say which dense model it came from. Pass --model SOURCE or --rivals none."
        )
    source = (subject if ours is dense else model or "") or ""
    found: dict[str, Measurement] = {}
    for number, size in enumerate(batches):
        report("bench", f"batch {size}", number / len(batches))
        found[str(size)] = measure(
            ours,
            random_batch(dense if dense is not None else ours, size, length),
            "all" if rivals == "all" else None,
            dense=dense,
            threads=threads,
            seconds=seconds,
            file_bytes=file_bytes,
            loaders=loaders if number == 0 else None,
            source=source if number == 0 else "",
        )
    report("bench", "done", 1.0)
    return found


def _candidates(
    subject: str, model: str | None
) -> tuple[nn.Module, nn.Module | None, Mapping[str, int], dict[str, tuple[str, str]]]:
    """Our module, the dense one, our file's bytes, and how a fresh process loads ours."""
    path = Path(subject)
    if not path.is_file():
        loaded = load_model(subject).model
        return loaded, loaded, {}, {}
    info = inspect(path)
    source = model or info.manifest.model.source
    dense = load_model(source).model if source else None
    if info.manifest.model.library == "torch":
        if source is None:
            raise ModelError(f"{subject} holds a model that only its own code can build. Pass --model SOURCE.")
        return load(path, model=load_model(source).model).eval(), dense, {"ours": path.stat().st_size}, {}
    loaders = {"ours": ("sparsewright.bundle:load", str(path))}
    if source is not None:
        loaders["torch fp32"] = ("sparsewright.models:load_model", source)
    return load(path), dense, {"ours": path.stat().st_size}, loaders


def profile_rows(profile: Profile) -> list[dict[str, Any]]:
    """A profile's rows as plain data for a table: shape, pattern, value type, tokens, speed-up."""
    return [
        {
            "shape": f"{row.shape[0]}x{row.shape[1]}",
            "pattern": row.pattern,
            "values": row.value_dtype,
            "tokens": row.tokens,
            "microseconds": round(1e6 * row.seconds, 1),
            "speed-up": round(row.dense_seconds / row.seconds, 2),
        }
        for row in profile.rows
    ]
