"""`search`: the plan that fits a budget, the front around it, and the baselines it must beat.

Costs are measured, losses predicted from calibration data and then corrected by a few true evaluations: the front is
walked by bisection for the fastest plan that keeps the quality budget. Nothing is trained; the test split stays shut.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import nn

from ..core import AbstractPattern, BudgetError, ModelError, Plan, ValueType, require_module, require_whole_model
from ..hardware import (
    AbstractTarget,
    ModelTime,
    ThisTarget,
    calibrated,
    interleave,
    load_target,
    pack_,
    run_model,
    time_model,
)
from ..models import LayerRef, batches_of, layers, sparsify_
from .bisection import fastest_within_drop
from .budget import Budget
from .front import pareto_front
from .sensitivity import Sensitivity, magnitude_errors, measure_sensitivity
from .space import CPU_PATTERNS, CostTable, cost_table, make_choices
from .sweep import Pick, describe, greedy_pick, random_picks, sweep, uniform_picks

Evaluate = Callable[[nn.Module], float]
Store = Callable[[dict[str, Any]], None]


@final
@dataclass(frozen=True)
class PlanResult:
    """One plan and what is known of it.

    Attributes:
        plan: layer name -> layer plan.
        label, kind: where it comes from (`search`, `uniform` or `baseline`).
        predicted_s: end to end, at the first batch.
        predicted: batch label -> predicted seconds.
        speedup: predicted, the least over the batches.
        size_bytes: whole model.
        predicted_drop: in the unit of `evaluate` once calibrated, else a relative figure.
        measured_s: end to end at the first batch, or None where it was not measured.
        quality: what `evaluate` said, or None.
        drop: dense quality - quality, or None.
    """

    plan: Plan
    label: str
    kind: str
    predicted_s: float
    predicted: Mapping[str, float]
    speedup: float
    size_bytes: float
    predicted_drop: float
    measured_s: float | None = None
    quality: float | None = None
    drop: float | None = None

    def to_row(self) -> dict[str, Any]:
        """Plain data for a store or a report."""
        counts: dict[str, int] = {}
        for layer in self.plan.layers.values():
            counts[str(layer.pattern)] = counts.get(str(layer.pattern), 0) + 1
        return {
            "label": self.label,
            "kind": self.kind,
            "predicted_s": self.predicted_s,
            "predicted": dict(self.predicted),
            "predicted_speedup": self.speedup,
            "predicted_drop": self.predicted_drop,
            "measured_s": self.measured_s,
            "quality": self.quality,
            "drop": self.drop,
            "size_bytes": self.size_bytes,
            "patterns": counts,
            "plan": self.plan.to_data(),
        }


@final
@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: the plan that fits the budget best: the fastest within the quality budget, or the least loss at the speed.
        front: plans that no other beats in predicted loss and time, slowest first.
        baselines: uniform, random and greedy plans.
        dense_quality: what `evaluate` said of the dense model, or None.
        table: costs of every layer and choice.
        sensitivity: predicted losses, calibrated by what was evaluated.
        reasons: layer -> why choices are missing or the layer stays dense.
    """

    best: PlanResult
    front: tuple[PlanResult, ...]
    baselines: tuple[PlanResult, ...]
    dense_quality: float | None
    table: CostTable
    sensitivity: Sensitivity
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def search(
    model: nn.Module,
    data: Any,
    *,
    evaluate: Evaluate | None = None,
    target: str | AbstractTarget = "this",
    budget: Budget,
    patterns: Sequence[AbstractPattern | str] | None = None,
    value_dtypes: Sequence[ValueType] = ("fp32",),
    method: str = "sparsegpt",
    batches: Mapping[str, Any] | None = None,
    evaluations: int = 6,
    points: int = 12,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    threads: int = 1,
    minutes: float | None = None,
    plan_evaluator: Callable[[Plan], float] | None = None,
    store: Store | None = None,
    measure_best: bool = True,
    seed: int = 0,
) -> SearchResult:
    """Choose a pattern (and value type) for every layer.

    Args:
        model: dense, in place nothing changes.
        data: calibration batches, or `Data` (its calibration split is used).
        evaluate: `(model) -> float`, higher is better, on validation data; without it losses are predicted only, and
            `max_quality_drop` cannot be asked for.
        target: name, profile file or target.
        budget: bounds; see `Budget`.
        patterns: search space; default the CPU patterns.
        value_dtypes: of kept values; `int8` lets a layer become dense int8.
        method: sparsifier.
        batches: label -> one input the model will serve; the speed-up must hold at each. Default: the first calibration
            batch.
        evaluations: at most so many true evaluations of sparse plans.
        points: plans on the predicted front.
        include, exclude: which layers take part; see `models.layers`.
        threads: intra-op threads that the model will run with.
        minutes: about how long sensitivity may be measured with the method itself; see `measure_sensitivity`.
        plan_evaluator: `(plan) -> quality`, instead of sparsifying a copy and calling `evaluate`.
        store: called with each evaluated plan as a plain row.
        measure_best: also pack a copy under the best plan and time it (target `this` only).
        seed: of the random baselines.

    Raises:
        BudgetError: no plan fits, naming the tightest value; or a quality budget without `evaluate`.
        ModelError: no layer takes part, or weights lie in parts on several processes (`fully_shard`).
        DataError: the model does not run on a batch.
    """
    if not isinstance(budget, Budget):
        raise BudgetError(f"A search runs under a budget, got {budget!r:.80}. Pass Budget(speedup=1.5), say.")
    if budget.max_quality_drop is not None and evaluate is None and plan_evaluator is None:
        raise BudgetError("A quality budget needs evaluate=(model) -> float. Pass it, or bound speed or size instead.")
    require_module(model)
    require_whole_model(model)
    found = layers(model, include, exclude)
    refs = [ref for ref in found if not ref.skipped_reason]
    if not refs:
        why = "; ".join(dict.fromkeys(ref.skipped_reason for ref in found)) or "it has no linear layer"
        raise ModelError(
            f"No layer of this model takes part, so there is nothing to search: {why}. Name others with include=, or "
            "leave this model dense."
        )
    machine = load_target(target)
    inputs = dict(batches) if batches else {"calibration batch": _first_input(batches_of(data, model))}
    table = costs_of(model, refs, machine, inputs, patterns or CPU_PATTERNS, value_dtypes, threads=threads)
    seen = list(dict.fromkeys(c.pattern for row in table.choices for c in row if not c.is_dense))
    sensitivity = measure_sensitivity(
        model, data, refs, seen, sparsifier=method, int8="int8" in value_dtypes, minutes=minutes
    )
    judge = _Judge(model, data, method, evaluate, plan_evaluator, store, table)
    losses = sensitivity.losses(table)
    picks = sweep(table, losses, budget, points)
    chosen, sensitivity = _refine(picks, table, sensitivity, budget, judge, evaluations)
    losses = sensitivity.losses(table)
    front = [describe(table, losses, pick.choices, pick.label, pick.kind) for pick in picks]
    if chosen.choices not in {pick.choices for pick in front}:
        front.append(describe(table, losses, chosen.choices, chosen.label, chosen.kind))
    front = pareto_front(front, loss=lambda pick: pick.loss, cost=lambda pick: 1 / pick.speedup)[::-1]
    guess = magnitude_errors(refs, table)
    baselines = [*uniform_picks(table, losses), *random_picks(table, losses, seed=seed)]
    baselines.append(greedy_pick(table, losses, guess, chosen.speedup))
    best = judge.result(describe(table, losses, chosen.choices, chosen.label, chosen.kind))
    if measure_best and isinstance(machine, ThisTarget):
        best = replace(best, measured_s=measure_plan(model, best.plan, next(iter(inputs.values())), threads=threads))
    return SearchResult(
        best=best,
        front=tuple(judge.result(pick) for pick in front),
        baselines=tuple(judge.result(pick) for pick in baselines),
        dense_quality=judge.dense_quality,
        table=table,
        sensitivity=sensitivity,
        reasons=table.reasons,
    )


def costs_of(
    model: nn.Module,
    refs: Sequence[LayerRef],
    target: AbstractTarget,
    inputs: Mapping[str, Any],
    patterns: Sequence[AbstractPattern | str] = CPU_PATTERNS,
    value_dtypes: Sequence[ValueType] = ("fp32",),
    *,
    threads: int = 1,
    dense_value_dtype: ValueType = "fp32",
    minutes: float | None = 1.5,
) -> CostTable:
    """Time the dense model at every input and cost every choice of the layers on the target.

    Args:
        model: dense.
        refs: the layers that take part.
        target: where it will run; another machine than this gets this machine's rest, scaled as its layers.
        inputs: batch label -> one input.
        patterns, value_dtypes: search space.
        threads: intra-op threads.
        dense_value_dtype: how dense layers are stored in the file.
        minutes: about how long a measuring target may take.
    """
    make_choices(patterns, value_dtypes)  # refuses unknown ones before anything takes time
    modules = {ref.name: ref.module for ref in refs}
    shapes = {ref.name: ref.shape for ref in refs}
    times = {label: time_model(model, batch, modules, shapes, threads=threads) for label, batch in inputs.items()}
    if isinstance(target, ThisTarget):
        kind: ValueType = "int8" if "int8" in value_dtypes else "fp32"
        times = calibrated(times, model, inputs, target, value_dtype=kind, threads=threads)
    else:
        _prepare_dense(target, times)
        times = {label: time.on(target) for label, time in times.items()}
    inside = sum(ref.shape[0] * ref.shape[1] for ref in refs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = 2 if dense_value_dtype == "fp16" else 4
    return cost_table(
        target,
        times,
        patterns,
        value_dtypes,
        rest_bytes=width * (parameters - inside),
        dense_value_dtype=dense_value_dtype,
        kernel_value_dtypes={ref.name: ref.view.value_types for ref in refs},
        minutes=minutes,
    )


def _prepare_dense(target: AbstractTarget, times: Mapping[str, ModelTime]) -> None:
    timed = [layer for time in times.values() for layer in time.layers.values()]
    target.prepare([layer.shape for layer in timed], [], sorted({layer.tokens_per_call for layer in timed}))


def measure_plan(model: nn.Module, plan: Plan, batch: Any, *, threads: int = 1, seconds: float = 3.0) -> float:
    """Seconds of the model under a plan, measured end to end.

    Magnitude masks and forced packing: time does not depend on which weights are kept.

    Args:
        model: dense; a copy is packed.
        plan: layer name -> layer plan.
        batch: one input.
        threads: intra-op threads.
        seconds: about how long to measure.
    """
    packed = copy.deepcopy(model).eval()
    if plan.sparse_layers:
        data_free = Plan({name: replace(layer, sparsifier="magnitude") for name, layer in plan.layers.items()})
        sparsify_(packed, data_free, method="magnitude")
    if plan.sparse_layers or plan.int8_layers:
        pack_(packed, plan=plan, force=True)
    samples = interleave({"plan": lambda: run_model(packed, batch)}, threads=threads, seconds=seconds, rounds=(7, 60))
    return samples["plan"].median


class _Judge:
    """Evaluates plans truly, each once, and remembers."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        method: str,
        evaluate: Evaluate | None,
        plan_evaluator: Callable[[Plan], float] | None,
        store: Store | None,
        table: CostTable,
    ) -> None:
        self._model = model
        self._data = data
        self._method = method
        self._evaluate = evaluate
        self._plan_evaluator = plan_evaluator
        self._store = store
        self._table = table
        self._known: dict[tuple[int, ...], float] = {}
        self.dense_quality: float | None = None
        if evaluate is not None:
            self.dense_quality = float(evaluate(model))
        elif plan_evaluator is not None:
            self.dense_quality = float(plan_evaluator(table.plan(table.dense_pick())))

    @property
    def able(self) -> bool:
        """Whether plans can be evaluated at all."""
        return self.dense_quality is not None

    def drop(self, pick: Pick) -> float:
        """Dense quality - quality of the pick."""
        assert self.dense_quality is not None
        if pick.choices not in self._known:
            self._known[pick.choices] = self._quality(pick)
            if self._store is not None:
                self._store(self.result(pick).to_row())
        return self.dense_quality - self._known[pick.choices]

    def _quality(self, pick: Pick) -> float:
        plan = self._table.plan(pick.choices, self._method)
        if self._plan_evaluator is not None:
            return float(self._plan_evaluator(plan))
        assert self._evaluate is not None
        candidate = copy.deepcopy(self._model)
        if plan.sparse_layers:
            sparsify_(candidate, plan, method=self._method, data=self._data)
        if plan.int8_layers:
            # Their rounding counts, so they are judged as they will run.
            pack_(candidate, plan=plan, force=True)
        return float(self._evaluate(candidate))

    def result(self, pick: Pick) -> PlanResult:
        """The pick with what is known of it."""
        quality = self._known.get(pick.choices)
        if quality is None and not any(pick.choices):
            quality = self.dense_quality
        drop = None if quality is None or self.dense_quality is None else self.dense_quality - quality
        labels = self._table.labels
        return PlanResult(
            plan=self._table.plan(pick.choices, self._method),
            label=pick.label,
            kind=pick.kind,
            predicted_s=pick.seconds[0],
            predicted=dict(zip(labels, pick.seconds)),
            speedup=pick.speedup,
            size_bytes=pick.size_bytes,
            predicted_drop=pick.loss,
            quality=quality,
            drop=drop,
        )


def _refine(
    picks: Sequence[Pick], table: CostTable, sensitivity: Sensitivity, budget: Budget, judge: _Judge, evaluations: int
) -> tuple[Pick, Sensitivity]:
    """The pick that fits the budget best, and the sensitivity in the user's unit."""
    if budget.max_quality_drop is None:
        # Speed and size are met by every pick; the least loss is the first.
        chosen = picks[0] if budget.speedup is not None or budget.size_bytes is not None else picks[-1]
        if judge.able and evaluations > 0:
            sensitivity = sensitivity.calibrated([(chosen.loss, judge.drop(chosen))])
        return chosen, sensitivity
    return fastest_within_drop(
        picks, table, sensitivity, judge.drop, budget.max_quality_drop, evaluations, budget.size_bytes
    )


def _first_input(batches: Sequence[Any]) -> Any:
    first = batches[0]
    return dict(first.kwargs) if first.kwargs else first.args
