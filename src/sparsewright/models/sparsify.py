"""`sparsify_`: a plan and a method make a model sparse in place, or leave it exactly as it was."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from torch import Tensor, nn

from ..core import (
    VALUE_BITS,
    AbstractPattern,
    Edge,
    LayerPlan,
    LayerStats,
    ModelError,
    PatternError,
    Plan,
    PlanError,
    ValueType,
    parse_pattern,
    suggest,
)
from ..sparsifiers import AbstractSparsifier, Sparsified, auto, reconstruction_error, sparsifiers
from .adapters import layers
from .calibrate import calibrate
from .data import batches_of
from .global_scope import spread_globally
from .layer_ref import MASK, LayerRef, drop_mask

PlanLike = str | AbstractPattern | Plan | Mapping[str, Any]
Progress = Callable[[int, int, str], None]


@final
@dataclass(frozen=True)
class LayerResult:
    """What became of one layer.

    Attributes:
        pattern: text of its pattern.
        sparsifier: name of the method; the one that won where `auto` chose.
        density: kept / all by its mask; edges that keep less or more than the pattern count as they are.
        error: relative squared error of its output on the calibration data; of its weight where there were none.
        seconds: time of its sparsifier.
        settings: name -> number that the method chose for the layer on the calibration data (`damping`, `rho`).
    """

    pattern: str
    sparsifier: str
    density: float
    error: float
    seconds: float
    settings: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class SparsifyResult:
    """What `sparsify_` did.

    Attributes:
        plan: the plan that was applied, sparsifiers filled in.
        layers: name -> result, in the order in which they were sparsified.
        skipped: name -> reason, of every layer that stayed dense.
        seconds: all of it, calibration included.
    """

    plan: Plan
    layers: dict[str, LayerResult] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def sparsify_(
    model: nn.Module,
    plan: PlanLike,
    *,
    method: str | AbstractSparsifier = "magnitude",
    data: Any = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    scope: Literal["layer", "global"] = "layer",
    edge: Edge = "error",
    value_dtype: ValueType | None = None,
    progress: Progress | None = None,
) -> SparsifyResult:
    """Remove weights in place.

    Afterwards a sparsified layer has zeros in `weight` and a persistent bool buffer `weight_mask` beside it (an exact
    zero among kept weights stays kept), and remembers its pattern, which `pack_` and `save` use while the mask
    obeys it. On any error the model is as it was before.

    Args:
        model: any module; layers that stay dense are listed with their reason in the result.
        plan: a pattern or its text for every layer that takes part; a `Plan`; or rules (exact name or `re:EXPRESSION`
            -> pattern text or layer plan), where an exact name reaches also a layer that is skipped by default.
        method: a sparsifier's name (or one of your own), for layers whose plan names none. `auto` takes the one of
            least reconstruction error for each layer, of those whose needs the data meet.
        data: calibration data, for methods that need them; see `batches_of`.
        filter_fn: `(module, name) -> bool`, False leaves the layer dense.
        include: names or `re:EXPRESSION`; see `layers`.
        exclude: the same.
        scope: `global` spreads the one density of an unstructured pattern over all layers by their scores.
        edge: what becomes of groups and tiles that a layer's end cuts off: `error` refuses the pattern there, `at_most`
            keeps at most as much of them as of whole ones, `dense` keeps them whole.
        value_dtype: `int8` rounds what is kept in the same pass, to the very values that `pack_` then stores; None:
            what each layer's plan says. Layers without a kernel for such values stay as planned.
        progress: called as `progress(done, total, layer name)` after each layer.

    Returns:
        Per layer pattern, density, error, seconds and settings; the reasons for the rest.

    Raises:
        ModelError: no layer takes part, or there is no such scope.
        PlanError, PatternError: the plan names unknown layers, or a pattern does not fit; all misfits are listed.
        DataError: the method needs data and there are none, they never reach a layer, or the model fails on a batch.
        NumericError: a weight or an input is NaN or infinite; names layer and position.
    """
    if scope not in ("layer", "global"):
        raise ModelError(f"scope is 'layer' or 'global', got {scope!r}.")
    started = time.perf_counter()
    refs = _filtered(layers(model, include, exclude, mask_only=True), filter_fn)
    full, chosen = resolve_plan(plan, refs, edge, value_dtype)
    method_of, named = methods_of(full, chosen, method, data is not None)
    needs = {name: sparsifier.needs for name, sparsifier in method_of.items()}
    batches = batches_of(data, model) if data is not None else []
    if scope == "global":
        full = spread_globally(model, full, chosen, batches, needs)
        chosen = [ref for ref in chosen if not full.layers[ref.name].is_dense]
    results: dict[str, LayerResult] = {}

    def visit(block: Sequence[LayerRef], stats: Mapping[str, LayerStats]) -> None:
        for ref in block:
            planned, name = full.layers[ref.name], named[ref.name]
            results[ref.name] = _sparsify_layer(ref, planned, method_of[ref.name], name, stats.get(ref.name))
            if progress is not None:
                progress(len(results), len(chosen), ref.name)

    with _unchanged_on_error(chosen):
        calibrate(model, batches, chosen, needs, visit)
    return outcome(full, refs, named, results, time.perf_counter() - started)


def outcome(
    plan: Plan,
    refs: Sequence[LayerRef],
    named: Mapping[str, str],
    results: dict[str, LayerResult],
    seconds: float,
) -> SparsifyResult:
    """The result of a run: its plan with sparsifiers filled in, and the reason of every layer that stayed dense."""
    done = {
        name: replace(layer, sparsifier=results[name].sparsifier) if name in results else layer
        for name, layer in plan.layers.items()
    }
    skipped = {ref.name: ref.skipped_reason for ref in refs if ref.skipped_reason and ref.name not in results}
    for name, layer in plan.layers.items():
        if layer.is_dense:
            skipped[name] = layer.reason or "planned dense"
    for ref in refs:
        if ref.name not in results and ref.name not in skipped:
            skipped[ref.name] = "no rule names it"
    return SparsifyResult(Plan(done), results, skipped, seconds)


def planned_layers(
    model: nn.Module,
    plan: PlanLike,
    *,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[tuple[LayerRef, AbstractPattern]]:
    """The layers that `sparsify_` would make sparse with these arguments, each with its pattern; changes nothing.

    Raises:
        ModelError, PlanError, PatternError: as `sparsify_`.
    """
    refs = _filtered(layers(model, include, exclude, mask_only=True), filter_fn)
    full, chosen = resolve_plan(plan, refs)
    return [(ref, full.layers[ref.name].pattern) for ref in chosen]


def strip_masks_(model: nn.Module) -> int:
    """Drop every `weight_mask` buffer; the zeros stay in the weights. Returns how many there were."""
    found = [module for module in model.modules() if module._buffers.get(MASK) is not None]
    for module in found:
        drop_mask(module)
    return len(found)


def _filtered(refs: Sequence[LayerRef], filter_fn: Callable[[nn.Module, str], bool] | None) -> list[LayerRef]:
    if filter_fn is None:
        return list(refs)
    return [
        ref if ref.skipped_reason or filter_fn(ref.module, ref.name) else replace(ref, skipped_reason="filtered out")
        for ref in refs
    ]


def resolve_plan(
    plan: PlanLike, refs: Sequence[LayerRef], edge: Edge = "error", value_dtype: ValueType | None = None
) -> tuple[Plan, list[LayerRef]]:
    """The plan by layer name, and the layers that become sparse, in the order of the model; every pattern fits.

    Raises:
        ModelError: no layer takes part.
        PlanError, PatternError: the plan names layers that are unknown or cannot be sparse, or a pattern does not fit.
    """
    full, chosen = _by_name(plan, refs)
    full = _with_options(full, chosen, edge, value_dtype)
    _require_fits(full, chosen)
    return full, chosen


def _by_name(plan: PlanLike, refs: Sequence[LayerRef]) -> tuple[Plan, list[LayerRef]]:
    taking_part = [ref for ref in refs if not ref.skipped_reason]
    by_name = {ref.name: ref for ref in refs}
    if isinstance(plan, str | AbstractPattern):
        pattern = parse_pattern(plan)
        if not taking_part:
            raise ModelError(f"No layer of this model takes part. {_reasons(refs)}")
        full = Plan.uniform([ref.name for ref in taking_part], pattern)
    elif isinstance(plan, Plan):
        full = plan
    elif isinstance(plan, Mapping):
        able = [ref.name for ref in refs if not ref.skipped_reason or (ref.may_ask and ref.name in plan)]
        for name in plan:
            if name in by_name and name not in able:
                raise PlanError(f"{name} cannot be sparse: {by_name[name].skipped_reason}. Take it out of the rules.")
        if not able:
            raise ModelError(f"No layer of this model takes part. {_reasons(refs)}")
        full = Plan.from_rules(plan, able)
    else:
        raise PlanError(f"A plan is a pattern text, a pattern, a Plan or a dict of rules, got {type(plan).__name__}.")
    chosen = []
    for name in full.layers:
        ref = by_name.get(name)
        if ref is None:
            raise PlanError(f"The plan names {name!r}, which this model does not have. {suggest(name, by_name)}")
        if name in full.sparse_layers and ref.skipped_reason and not ref.may_ask:
            raise PlanError(f"{name} cannot be sparse: {ref.skipped_reason}. Take it out of the plan.")
    chosen = [ref for ref in refs if ref.name in full.sparse_layers]
    return full, chosen


def _reasons(refs: Sequence[LayerRef]) -> str:
    if not refs:
        return "It has no linear layer and no convolution."
    counted: dict[str, int] = {}
    for ref in refs:
        counted[ref.skipped_reason] = counted.get(ref.skipped_reason, 0) + 1
    return "Skipped: " + "; ".join(f"{count}x {reason}" for reason, count in counted.items()) + "."


def _with_options(plan: Plan, refs: Sequence[LayerRef], edge: Edge, value_dtype: ValueType | None) -> Plan:
    """The plan with the call's treatment of edges and its value type."""

    def of(ref: LayerRef) -> LayerPlan:
        layer = plan.layers[ref.name]
        if value_dtype is not None and value_dtype in ref.view.value_types:
            layer = replace(layer, value_dtype=value_dtype)
        # A rule may bring an edge of its own.
        return layer if edge == "error" else replace(layer, pattern=layer.pattern.with_edge(edge))

    if value_dtype is not None and (not isinstance(value_dtype, str) or value_dtype not in VALUE_BITS):
        raise PlanError(f"There are no {value_dtype!r} values. {suggest(str(value_dtype), VALUE_BITS)}")
    return Plan({**plan.layers, **{ref.name: of(ref) for ref in refs}})


def _require_fits(plan: Plan, refs: Sequence[LayerRef]) -> None:
    misfits = []
    for ref in refs:
        pattern = plan.layers[ref.name].pattern
        for reason in pattern.why_not(ref.shape):
            misfits.append(f"{ref.name} of shape {ref.shape} with {pattern}: {reason}")
    if misfits:
        more = f" (and {len(misfits) - 3} more)" if len(misfits) > 3 else ""
        raise PatternError(
            f"Patterns must fit their layers: {'; '.join(misfits[:3])}{more}. "
            "Pass edge='at_most' (or 'dense'), exclude them, or plan them dense."
        )


def methods_of(
    plan: Plan, refs: Sequence[LayerRef], method: str | AbstractSparsifier, with_data: bool
) -> tuple[dict[str, AbstractSparsifier], dict[str, str]]:
    """Layer name -> sparsifier, and -> its name.

    Raises:
        ModelError: the method is neither a name nor a sparsifier.
    """
    if not isinstance(method, str | AbstractSparsifier):
        raise ModelError(
            f"method is a sparsifier's name or a sparsifier of your own, got {method!r:.80}. "
            f"Names are {', '.join(sparsifiers.names())}."
        )
    found, named = {}, {}
    for ref in refs:
        own = plan.layers[ref.name].sparsifier
        asked = own if own is not None else method
        if asked == auto.NAME and not with_data:
            # The only one that needs no data.
            asked = "magnitude"
        found[ref.name] = sparsifiers.get(asked) if isinstance(asked, str) else asked
        named[ref.name] = asked if isinstance(asked, str) else type(asked).__name__
    return found, named


def _sparsify_layer(
    ref: LayerRef, planned: LayerPlan, sparsifier: AbstractSparsifier, name: str, stats: LayerStats | None
) -> LayerResult:
    after, result = solve_layer(ref.name, ref.get_weight().contiguous(), planned, sparsifier, name, stats)
    ref.set_weight(after.weight, after.mask, planned.pattern)
    return result


def solve_layer(
    layer: str,
    weight: Tensor,
    planned: LayerPlan,
    sparsifier: AbstractSparsifier,
    name: str,
    stats: LayerStats | None,
) -> tuple[Sparsified, LayerResult]:
    """Sparsify one weight and say what became of it.

    Args:
        layer: the layer's name, for messages.
        weight: `(out, in)`; is not changed.
        planned: its pattern and the type of its values.
        sparsifier: the method.
        name: the method's name, for the result.
        stats: what calibration collected, if the method needs it.
    """
    started = time.perf_counter()
    if stats is not None and not bool(stats.square_sum.any()):
        # Every weight then has the error zero.
        warnings.warn(
            f"Every calibration input of {layer} is zero, so the data do not say what its weights are worth. "
            "Give data that reaches it, or exclude it.",
            stacklevel=2,
        )
    after = sparsifier.sparsify(weight, stats, planned.pattern, layer=layer, value_dtype=planned.value_dtype)
    seconds = time.perf_counter() - started
    error = relative_error(weight, after.weight, stats)
    density = float(after.mask.sum()) / after.mask.numel()
    return after, LayerResult(
        str(planned.pattern), after.sparsifier or name, density, error, seconds, dict(after.settings)
    )


def relative_error(before: Tensor, after: Tensor, stats: LayerStats | None) -> float:
    """Squared error of a layer's output relative to its squared output.

    Args:
        before: `(out, in)` dense weight.
        after: `(out, in)` sparse weight.
        stats: with a gram matrix the figure is exact on the calibration data; with square sums inputs count as
            uncorrelated; without stats it is the error of the weight itself.
    """
    if stats is not None and stats.gram is not None:
        return reconstruction_error(before, after, stats)
    dense = before.double()
    lost = dense - after.double()
    if stats is not None:
        error, whole = (float((matrix.square() * stats.square_sum).sum()) for matrix in (lost, dense))
    else:
        error, whole = float(lost.square().sum()), float(dense.square().sum())
    return 0.0 if whole == 0 else error / whole


@contextmanager
def _unchanged_on_error(refs: Sequence[LayerRef]) -> Iterator[None]:
    """Put weights and masks of these layers back if the block fails, also on Ctrl-C."""
    kept = [(ref, ref.get_weight().clone(), ref.get_mask(), ref.remembered_pattern) for ref in refs]
    try:
        yield
    except BaseException:
        for ref, weight, mask, pattern in kept:
            ref.set_weight(weight, mask, pattern)
        raise
