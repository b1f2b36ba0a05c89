"""Sensitivity: what each choice of each layer does to the layer's output, and what that does to the model's output.

Two factors, multiplied. The layer's error is `trace(dW G dW^T) / trace(W G W^T)` with the Gram matrix `G` of its
inputs: the relative squared error of its output on the calibration data, after a sparsifier has done its best (the
second-order view of Optimal Brain Surgeon, Hassibi and Stork 1992). The layer's weight is how far the model's own
output moves per unit of that error, found by making one layer sparse at a time. Neither needs labels. A few true
evaluations then bring the sum into the user's unit (`Sensitivity.calibrated`).
"""

import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ..core import AbstractPattern, LayerStats, NumericError, PlanError, parse_pattern
from ..layouts import layouts
from ..models import LayerRef, batches_of, calibrate
from ..models.modes import quiet
from ..sparsifiers import AbstractSparsifier, Sparsified, sparsifiers
from .space import Choice, CostTable

# Rounding to fp16 moves a value by at most 2^-12 of itself (2^-11 spacing), evenly spread.
_FP16_ERROR = 2.0**-24 / 3
_PROBE_TOKENS = 1500


@final
@dataclass(frozen=True)
class Sensitivity:
    """Expected loss per layer and choice.

    Attributes:
        errors: (layer, pattern text) -> relative squared error of the layer's output, 0 to about 1.
        int8_errors: layer -> what rounding to int8 adds.
        weights: layer -> movement of the model's output per unit of error.
        scale: loss in the user's unit per unit of movement; 1 until calibrated.
        sparsifier: which one the errors are of; entries that a time budget forced to a cheaper one are in `cheaper`.
        cheaper: (layer, pattern text) pairs measured with the cheaper sparsifier.
    """

    errors: Mapping[tuple[str, str], float]
    weights: Mapping[str, float]
    scale: float = 1.0
    int8_errors: Mapping[str, float] = field(default_factory=dict)
    sparsifier: str = ""
    cheaper: tuple[tuple[str, str], ...] = ()

    def loss(self, layer: str, choice: Choice) -> float:
        """Expected loss of one choice.

        Raises:
            PlanError: this pair was not measured.
        """
        error = 0.0
        if not choice.is_dense:
            key = (layer, str(choice.pattern))
            if key not in self.errors:
                raise PlanError(f"The sensitivity of {layer} to {choice.pattern} was not measured. Measure it.")
            error = self.errors[key]
        if choice.value_dtype == "fp16":
            error += _FP16_ERROR
        if choice.value_dtype == "int8":
            error += self.int8_errors.get(layer, 0.0)
        return self.scale * self.weights.get(layer, 1.0) * error

    def losses(self, table: CostTable) -> list[list[float]]:
        """Per layer, per choice of the table, in the knapsack's form."""
        return [[self.loss(name, choice) for choice in choices] for name, choices in zip(table.names, table.choices)]

    def calibrated(self, points: Iterable[tuple[float, float]]) -> "Sensitivity":
        """Bring the sum into the user's unit.

        Args:
            points: (predicted loss under this sensitivity, true drop) of evaluated plans; drops below zero are noise
                around zero and count as zero.

        Returns:
            A copy whose scale fits the points best (least squares through the origin); unchanged where there is
            nothing to fit.
        """
        pairs = [(predicted, max(0.0, drop)) for predicted, drop in points if predicted > 0]
        square = sum(predicted * predicted for predicted, _ in pairs)
        product = sum(predicted * drop for predicted, drop in pairs)
        # A plan that costs nothing must not make every plan look free.
        factor = max(product / square, 1e-3) if square > 0 else 1.0
        return replace(self, scale=self.scale * factor)

    def to_rows(self) -> list[dict[str, Any]]:
        """Rows for a report."""
        return [
            {"layer": layer, "pattern": pattern, "error": error, "weight": self.weights.get(layer, 1.0)}
            for (layer, pattern), error in self.errors.items()
        ]


def measure_sensitivity(
    model: nn.Module,
    data: Any,
    refs: Sequence[LayerRef],
    patterns: Iterable[AbstractPattern | str],
    *,
    sparsifier: str = "sparsegpt",
    probe: AbstractPattern | str = "4x1@50%",
    int8: bool = False,
    minutes: float | None = None,
    cache: MutableMapping[str, float] | None = None,
) -> Sensitivity:
    """Measure errors and weights on calibration data. The model is left as it was.

    Args:
        model: dense.
        data: calibration batches; labels are not used.
        refs: the layers that may become sparse.
        patterns: sparse patterns; those that do not fit a layer are left out for it.
        sparsifier: whose errors to measure; `sparsegpt` ranks patterns as the final method does, `wanda` is cheaper.
        probe: pattern that makes one layer sparse at a time to find its weight.
        int8: also measure what rounding weights and inputs to int8 adds.
        minutes: after this time the rest is measured with the sparsifier `wanda`; None never switches, so that the
            same input gives the same figures.
        cache: figures by name; what is in it is not measured again, what is measured is put in (resume).

    Raises:
        DataError: no data, or a layer is never reached.
        NumericError: inputs, weights or the model's output are not finite.
    """
    stop = None if minutes is None else time.perf_counter() + 60 * minutes
    parsed = list(dict.fromkeys(parse_pattern(pattern) for pattern in patterns))
    known: MutableMapping[str, float] = {} if cache is None else cache
    errors = _Errors(parsed, parse_pattern(probe), sparsifier, int8, stop, known)
    batches = batches_of(data, model)
    missing = [ref for ref in refs if errors.lacks(ref)]
    if missing:
        calibrate(model, batches, missing, {ref.name: "gram" for ref in missing}, errors.visit)
    weights = _weights(model, batches, refs, errors, known)
    return Sensitivity(
        errors={
            (ref.name, str(pattern)): known[_name("error", sparsifier, ref.name, pattern)]
            for ref in refs
            for pattern in parsed
            if pattern.fits(ref.shape)
        },
        weights=weights,
        int8_errors={ref.name: known[_name("error", "int8", ref.name, "dense")] for ref in refs} if int8 else {},
        sparsifier=sparsifier,
        cheaper=tuple(errors.cheaper),
    )


def _name(kind: str, sparsifier: str, layer: str, pattern: AbstractPattern | str) -> str:
    return f"{kind}|{sparsifier}|{layer}|{pattern}"


class _Errors:
    """Collects the error of every (layer, pattern) as calibration hands over one block's stats after another."""

    def __init__(
        self,
        patterns: Sequence[AbstractPattern],
        probe: AbstractPattern,
        sparsifier: str,
        int8: bool,
        stop: float | None,
        known: MutableMapping[str, float],
    ) -> None:
        self.patterns = patterns
        self.probe = probe
        self.sparsifier = sparsifier
        self.int8 = int8
        self.known = known
        self.cheaper: list[tuple[str, str]] = []
        self.probes: dict[str, tuple[Tensor, float]] = {}
        self._stop = stop

    def lacks(self, ref: LayerRef) -> bool:
        """Whether a figure of this layer is still to be measured."""
        wanted = [_name("error", self.sparsifier, ref.name, p) for p in self.patterns if p.fits(ref.shape)]
        wanted += [_name("weight", self.sparsifier, ref.name, self.probe)]
        wanted += [_name("error", "int8", ref.name, "dense")] if self.int8 else []
        return any(name not in self.known for name in wanted)

    def visit(self, block: Sequence[LayerRef], stats: Mapping[str, LayerStats]) -> None:
        """Measure one block; nothing is changed, so that the next block sees the dense model's activations."""
        for ref in block:
            weight = ref.get_weight().contiguous()
            own = stats[ref.name]
            metric = _Metric(weight, own, ref.name)
            for pattern in self.patterns:
                if pattern.fits(ref.shape) and _name("error", self.sparsifier, ref.name, pattern) not in self.known:
                    result = self._sparsify(ref, weight, own, pattern)
                    self.known[_name("error", self.sparsifier, ref.name, pattern)] = metric.error(result.weight)
            probe = self.probe_of(ref)
            result = self._sparsify(ref, weight, own, probe)
            # Half precision is plenty to find a direction, at half the memory.
            self.probes[ref.name] = (result.weight.to(torch.bfloat16), metric.error(result.weight))
            if self.int8:
                self.known[_name("error", "int8", ref.name, "dense")] = metric.int8_error()

    def probe_of(self, ref: LayerRef) -> AbstractPattern:
        """The probe where it fits, else the first pattern that does."""
        return next((p for p in (self.probe, *self.patterns) if p.fits(ref.shape)), parse_pattern("50%"))

    def _sparsify(self, ref: LayerRef, weight: Tensor, stats: LayerStats, pattern: AbstractPattern) -> Sparsified:
        late = self._stop is not None and time.perf_counter() > self._stop
        if late and self.sparsifier != "wanda":
            self.cheaper.append((ref.name, str(pattern)))
        method: AbstractSparsifier = sparsifiers.get("wanda" if late else self.sparsifier)
        return method.sparsify(weight, stats, pattern, layer=ref.name)


class _Metric:
    """Relative squared output error of changed weights of one layer."""

    def __init__(self, weight: Tensor, stats: LayerStats, layer: str) -> None:
        if stats.gram is None:
            raise NumericError(f"The error of {layer} needs the Gram matrix of its inputs, calibration kept none.")
        self._weight = weight.to(torch.float32)
        self._gram = stats.gram.to(torch.float32)
        self._whole = self._square(self._weight)
        self._tokens = stats.tokens
        self._input_square = float(stats.square_sum.mean()) / stats.tokens
        self._widest_square = float(stats.square_sum.max()) / stats.tokens

    def _square(self, change: Tensor) -> float:
        return float(((change @ self._gram) * change).sum(dtype=torch.float64))

    def error(self, weight: Tensor) -> float:
        """Error of a changed weight, 0 or more."""
        if self._whole <= 0:
            return 0.0
        return max(0.0, self._square(self._weight - weight.to(torch.float32)) / self._whole)

    def int8_error(self) -> float:
        """Error of int8 weights (one scale per row) and of inputs rounded to 7 bits (one range per token, taken as
        eight deviations of all inputs, or four of the widest if that is more). Where rows choose alone inputs stay
        exact, so that it is a bound from above."""
        rounded = layouts.get("int8").rounded(self._weight, torch.int8)
        spread = max(8 * self._input_square**0.5, 4 * self._widest_square**0.5)
        noise = self._tokens * (spread / 127) ** 2 / 12 * float(self._weight.square().sum())
        return self.error(rounded) + (noise / self._whole if self._whole > 0 else 0.0)


def _weights(
    model: nn.Module,
    batches: Sequence[Any],
    refs: Sequence[LayerRef],
    errors: _Errors,
    known: MutableMapping[str, float],
) -> dict[str, float]:
    todo = [ref for ref in refs if _name("weight", errors.sparsifier, ref.name, errors.probe) not in known]
    if todo:
        with quiet(model):
            probes = _probe_batches(batches)
            reference = [_output(batch, model) for batch in probes]
            centre = torch.cat(reference).mean(0)
            whole = sum(float((y - centre).square().sum()) for y in reference)
            for ref in todo:
                weight, error = errors.probes[ref.name]
                with _replaced(ref, weight):
                    moved = sum(float((_output(b, model) - y).square().sum()) for b, y in zip(probes, reference))
                weight_of = moved / max(whole, 1e-30) / error if error > 0 else 0.0
                known[_name("weight", errors.sparsifier, ref.name, errors.probe)] = weight_of
    return {ref.name: known[_name("weight", errors.sparsifier, ref.name, errors.probe)] for ref in refs}


def _probe_batches(batches: Sequence[Any]) -> list[Any]:
    """The first batches, enough for a steady figure and few enough for one run per layer."""
    chosen, tokens = [], 0
    for batch in batches:
        chosen.append(batch)
        sizes = [
            t.shape[0] * (t.shape[1] if t.dim() == 2 else 64) for t in batch.values if isinstance(t, Tensor) and t.dim()
        ]
        tokens += max(sizes, default=1)
        if tokens >= _PROBE_TOKENS:
            break
    return chosen


def _output(batch: Any, model: nn.Module) -> Tensor:
    """`(items, width)` float32: logits, or hidden states averaged over the tokens that are not padding."""
    found = batch.run(model)
    logits = getattr(found, "logits", None)
    hidden = getattr(found, "last_hidden_state", None)
    tensor = next((t for t in (logits, hidden, found) if isinstance(t, Tensor)), None)
    if tensor is None:
        tensor = next(value for value in (found.values() if isinstance(found, Mapping) else found))
    tensor = tensor.detach().float()
    if not bool(torch.isfinite(tensor).all()):
        raise NumericError("The model's output on calibration data is not finite. Repair the checkpoint or the data.")
    if logits is None and tensor.dim() == 3:
        mask = batch.token_mask
        if mask is None or mask.shape != tensor.shape[:2]:
            return tensor.mean(1)
        share = mask.to(tensor.dtype).unsqueeze(-1)
        pooled: Tensor = (tensor * share).sum(1) / share.sum(1).clamp_min(1)
        return pooled
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.reshape(-1, 1)


@contextmanager
def _replaced(ref: LayerRef, weight: Tensor) -> Iterator[None]:
    """Another weight for the block, the layer's own afterwards, to the bit."""
    own = ref.get_weight()
    before = own.clone()
    try:
        own.copy_(weight)
        yield
    finally:
        own.copy_(before)


def magnitude_errors(refs: Sequence[LayerRef], table: CostTable) -> list[list[float]]:
    """Share of the squared weights that each choice removes: the data-free guess that a search must beat."""
    method = sparsifiers.get("magnitude")
    by_name = {ref.name: ref for ref in refs}
    rows = []
    for name, choices in zip(table.names, table.choices):
        weight = by_name[name].get_weight().contiguous()
        whole = float(weight.square().sum(dtype=torch.float64)) or 1.0
        row: dict[AbstractPattern, float] = {}
        for choice in choices:
            if choice.pattern not in row and not choice.is_dense:
                kept = method.sparsify(weight, None, choice.pattern, layer=name).weight
                row[choice.pattern] = 1.0 - float(kept.square().sum(dtype=torch.float64)) / whole
        rows.append([0.0 if choice.is_dense else float(np.clip(row[choice.pattern], 0, 1)) for choice in choices])
    return rows
