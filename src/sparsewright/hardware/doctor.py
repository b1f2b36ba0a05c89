"""`doctor`: what this machine is and accelerates; with a model, what sparsity could bring it here, before any data.

The speed-ups are measured: kernels with random masks of each pattern, and the model's own time with random inputs. They
are the best case, because no one yet knows which layers may keep a pattern without losing quality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import nn

from .. import kernels, layouts
from ..core import VALUE_BITS, AbstractPattern, Dense, ProfileError, ValueType, parse_pattern
from ..models import layers, load_model
from ..solvers import solve_mask
from .calibrated_time import calibrated
from .cuda import cuda_states, why_no_cuda
from .fingerprint import Machine, this_machine
from .model_time import ModelTime, time_model
from .operands import TORCH_DTYPES
from .random_batch import random_batch
from .this import ThisTarget

PATTERNS = (
    *("2:4", "4:8", "50%", "2:4x4", "4x1@50%", "2:4x16", "1:4x4", "4x1@25%"),
    *("dense int8", "4x1@75% int8", "4x1@50% int8", "4x1@25% int8"),
)
TOKENS = (1, 64, 1024)
_SHAPE = (768, 768)

Shape = tuple[int, int]
Choice = tuple[AbstractPattern, ValueType]

# Below this a proof of concept would measure noise and effort rather than gain.
_WORTH_SPEEDUP = 1.15
_WORTH_BYTES = 0.9
# A milder verdict must not rest on patterns that hardly any model survives.
_MILD_DENSITY = 0.5

WORTH = "worth a proof of concept"
ONLY_SIZE = "only for size"
NOT_HERE = "not on this machine"


@final
@dataclass(frozen=True)
class Acceleration:
    """One pattern on this machine.

    Attributes:
        pattern: text, with the value type where it is not fp32.
        speedups: tokens -> dense time / packed time of a 768 x 768 layer.
        kernel: the kernel that runs it at 64 tokens.
        reasons: why it cannot run here; empty if it can.
    """

    pattern: str
    speedups: Mapping[int, float]
    kernel: str
    reasons: tuple[str, ...]


@final
@dataclass(frozen=True)
class BestCase:
    """A model with one pattern everywhere it fits.

    Attributes:
        pattern: text, with the value type where it is not fp32.
        speedups: batch label -> end-to-end dense time / predicted time.
        size_bytes: whole model, kept values as they run, everything else as fp32.
        size_share: of the dense fp32 model.
        size_bytes_fp16: whole model with every value that is not int8 as fp16.
        layers: how many layers take the pattern and win.
    """

    pattern: str
    speedups: Mapping[str, float]
    size_bytes: float
    size_share: float
    size_bytes_fp16: float
    layers: int


@final
@dataclass(frozen=True)
class ModelDoctor:
    """What sparsity could bring one model here.

    Attributes:
        parameters, dense_bytes: of the model, float32.
        sparse_share: batch label -> share of the time that is spent in layers that can be sparse.
        limit: batch label -> the speed-up that no sparsity can pass (layers at no cost).
        dense_s: batch label -> seconds of the dense model.
        best_cases: per pattern.
        no_gain: layer -> why it cannot gain.
        verdict: one of three.
        because: the sentence behind it.
    """

    parameters: int
    dense_bytes: int
    sparse_share: Mapping[str, float]
    limit: Mapping[str, float]
    dense_s: Mapping[str, float]
    best_cases: tuple[BestCase, ...]
    no_gain: Mapping[str, str]
    verdict: str
    because: str


@final
@dataclass(frozen=True)
class Doctor:
    """The findings.

    Attributes:
        machine: what this machine is.
        kernels: kernel -> instruction set and state in words.
        accelerations: per pattern.
        not_accelerated: what is not faster here -> why.
        model: with a model, what sparsity could bring it.
    """

    machine: Machine
    kernels: Mapping[str, str]
    accelerations: tuple[Acceleration, ...]
    not_accelerated: Mapping[str, str]
    model: ModelDoctor | None = None

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        data["machine"] = self.machine.to_data()
        return data


def doctor(
    model: nn.Module | str | None = None,
    *,
    minutes: float = 2.0,
    batch: Any = None,
    batches: Sequence[int] = (1, 32),
    length: int = 64,
    threads: int = 1,
    patterns: Sequence[AbstractPattern | str] = PATTERNS,
) -> Doctor:
    """Look at this machine and, if given, at a model on it.

    Args:
        model: a module, or a source such as `hf:NAME_OR_PATH`.
        minutes: about how long it may take in all.
        batch: one input; default random inputs of the sizes `batches`, made from the model's configuration.
        batches: batch sizes.
        length: tokens per item, where the model takes tokens.
        threads: intra-op threads.
        patterns: what to try; a text may end in a value type, as `4x1@50% int8` does.

    Raises:
        PatternError: a text is no pattern.
        ModelError: the model cannot be loaded or does not tell its input.
    """
    parsed = [parse_choice(str(pattern)) for pattern in patterns]
    # First, so that a mistyped name is told before anything is measured.
    loaded = load_model(model).model if isinstance(model, str) else model
    target = ThisTarget(threads=threads)
    share = 0.25 if loaded is not None else 0.9
    _prepare(target, [_SHAPE], parsed, TOKENS, minutes * share)
    accelerations = tuple(_acceleration(target, choice) for choice in parsed)
    found = None
    if loaded is not None:
        inputs = {"given": batch} if batch is not None else {}
        if not inputs:
            inputs = {f"batch {items}": random_batch(loaded, items, length) for items in batches}
        found = _examine(loaded, inputs, target, parsed, minutes * 0.6, threads)
    return Doctor(
        machine=this_machine(),
        kernels=_kernel_states(),
        accelerations=accelerations,
        not_accelerated=_not_accelerated(accelerations),
        model=found,
    )


def parse_choice(text: str) -> Choice:
    """A pattern, and the type of its values behind a blank where it is not fp32.

    Raises:
        PatternError: the text is no pattern.
    """
    pattern, _, values = text.strip().rpartition(" ")
    if pattern and values in VALUE_BITS:
        return parse_pattern(pattern), values  # type: ignore[return-value]
    return parse_pattern(text), "fp32"


def _text(choice: Choice) -> str:
    pattern, values = choice
    return str(pattern) if values == "fp32" else f"{pattern} {values}"


def _prepare(
    target: ThisTarget, shapes: list[Shape], choices: Sequence[Choice], tokens: Sequence[int], minutes: float
) -> None:
    """Measure what is asked for, value type by value type, in about so many minutes."""
    kinds = list(dict.fromkeys(values for _, values in choices))
    for kind in kinds:
        patterns = [pattern for pattern, values in choices if values == kind]
        share = minutes * len(patterns) / len(choices)
        target.prepare(shapes, patterns, tokens, [kind], minutes=share)


def _acceleration(target: ThisTarget, choice: Choice) -> Acceleration:
    pattern, values = choice
    reasons = target.can_run(pattern, _SHAPE)
    if reasons:
        return Acceleration(_text(choice), {}, "", tuple(reasons))
    speedups = {count: 1 / target.layer_cost(_SHAPE, pattern, count, values).ratio for count in TOKENS}
    return Acceleration(_text(choice), speedups, kernel_of(choice, 64), ())


def kernel_of(choice: Choice, tokens: int) -> str:
    """Name of the kernel that would run a small packed weight of the choice."""
    return kernels.which(_small(choice), tokens)


def _small(choice: Choice) -> layouts.PackedWeight:
    pattern, values = choice
    weight = torch.ones((64, 64))
    mask = torch.ones((64, 64), dtype=torch.bool) if isinstance(pattern, Dense) else solve_mask(weight, pattern)
    return layouts.pack(weight, mask, pattern=pattern, value_dtype=TORCH_DTYPES[values])


def _kernel_states() -> dict[str, str]:
    """Which kernels there are and why some do not run, asked with weights that all of them could take."""
    states: dict[str, str] = {}
    for text, tokens in (("4x1@50%", 64), ("2:4x16", 64), ("4x1@50%", 1), ("2:4", 64), ("4x1@50% int8", 64)):
        for name, reasons in kernels.why_not(_small(parse_choice(text)), tokens).items():
            if not reasons:
                states[name] = "runs here"
            else:
                states.setdefault(name, "; ".join(reasons))
    states.update(cuda_states())
    states["masked_dense"] = "only on request: torch's dense linear on a weight with zeros, no faster than dense"
    return states


def _not_accelerated(accelerations: Sequence[Acceleration]) -> dict[str, str]:
    found = {}
    for row in accelerations:
        if row.reasons:
            found[row.pattern] = "; ".join(row.reasons)
            continue
        slow = [count for count, value in row.speedups.items() if value < 1.05]
        if slow:
            figures = ", ".join(f"{row.speedups[count]:.2f}x at {count} tokens" for count in slow)
            found[row.pattern] = f"measured, no faster than torch's dense linear: {figures}"
    found["2:4t"] = "transposable masks run as plain 2:4; their gain is in training"
    found["convolutions"] = "judged by linear layers of their shape, and only where they are named"
    return {**found, **why_no_cuda()}


def _examine(
    model: nn.Module,
    inputs: Mapping[str, Any],
    target: ThisTarget,
    choices: Sequence[Choice],
    minutes: float,
    threads: int,
) -> ModelDoctor:
    refs = layers(model)
    able = [ref for ref in refs if not ref.skipped_reason and ref.runs_packed]
    no_gain = {ref.name: ref.skipped_reason or "no packed kernel: mask only" for ref in refs if ref not in able}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not able:
        because = "no layer of this model can be sparse: " + (next(iter(no_gain.values()), "it has no linear layer"))
        return ModelDoctor(parameters, 4 * parameters, {}, {}, {}, (), no_gain, NOT_HERE, because)
    modules = {ref.name: ref.module for ref in able}
    shapes = {ref.name: ref.shape for ref in able}
    seconds = 60 * minutes * 0.4 / len(inputs)
    times = {
        label: time_model(model, batch, modules, shapes, threads=threads, rounds=(5, 30), seconds=seconds)
        for label, batch in inputs.items()
    }
    tokens = sorted({layer.tokens_per_call for time in times.values() for layer in time.layers.values()})
    _prepare(target, list(shapes.values()), choices, tokens, minutes * 0.6)
    times = calibrated(times, model, inputs, target, threads=threads, rounds=(5, 15), seconds=seconds / 2)
    cases = []
    winners: set[str] = set()
    for choice in choices:
        case, won = _best_case(times, target, choice, parameters)
        cases.append(case)
        winners |= won
    for ref in able:
        if ref.name not in winners:
            no_gain[ref.name] = "measured: no pattern is faster than dense at these tokens"
    verdict, because = _verdict(cases, times)
    return ModelDoctor(
        parameters=parameters,
        dense_bytes=4 * parameters,
        sparse_share={label: time.sparse_share for label, time in times.items()},
        limit={label: time.total_s / max(time.rest_s, 1e-9) for label, time in times.items()},
        dense_s={label: time.total_s for label, time in times.items()},
        best_cases=tuple(cases),
        no_gain=no_gain,
        verdict=verdict,
        because=because,
    )


def _best_case(
    times: Mapping[str, ModelTime], target: ThisTarget, choice: Choice, parameters: int
) -> tuple[BestCase, set[str]]:
    pattern, values = choice
    speedups = {}
    won: set[str] = set()
    taken: dict[str, tuple[int, int]] = {}
    for label, time in times.items():
        chosen = {}
        for name, layer in time.layers.items():
            if target.can_run(pattern, layer.shape):
                continue
            try:
                spent = time.layer_seconds(target, name, pattern, values)
            except ProfileError:
                continue
            taken[name] = layer.shape
            if spent < layer.seconds:
                chosen[name] = spent
                won.add(name)
        speedups[label] = time.total_s / time.predict(chosen)
    inside = sum(out * in_ for out, in_ in taken.values())
    wide_bits, half_bits = (8, 8) if values == "int8" else (32, 16)
    wide = sum(pattern.theoretical_bytes(shape, wide_bits) for shape in taken.values()) + 4 * (parameters - inside)
    half = sum(pattern.theoretical_bytes(shape, half_bits) for shape in taken.values()) + 2 * (parameters - inside)
    return BestCase(_text(choice), speedups, wide, wide / (4 * parameters), half, len(won)), won


def _verdict(cases: Sequence[BestCase], times: Mapping[str, ModelTime]) -> tuple[str, str]:
    mild = [case for case in cases if parse_choice(case.pattern)[0].density >= _MILD_DENSITY and case.layers]
    if not mild:
        mild = [case for case in cases if case.layers]
    if mild:
        best = max(mild, key=lambda case: min(case.speedups.values()))
        worst = min(best.speedups.values())
        if worst >= _WORTH_SPEEDUP:
            figures = ", ".join(f"{value:.2f}x at {label}" for label, value in best.speedups.items())
            return WORTH, f"up to {figures} with {best.pattern}, and {best.size_share:.0%} of the bytes"
    smallest = min((case.size_share for case in cases), default=1.0)
    share = ", ".join(f"{time.sparse_share:.0%} at {label}" for label, time in times.items())
    if smallest <= _WORTH_BYTES:
        return (
            ONLY_SIZE,
            f"files shrink to {smallest:.0%}, but the layers are too little of the time ({share}) or too slow",
        )
    return NOT_HERE, f"neither faster nor smaller enough: the layers take {share} of the time"
