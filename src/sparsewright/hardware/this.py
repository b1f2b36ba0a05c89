"""The target `this`: layers timed on this machine as they will run, side by side with torch's dense linear."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, final

import torch

from ..core import (
    VALUE_BITS,
    AbstractPattern,
    Dense,
    KernelError,
    LayoutError,
    ProfileError,
    ValueType,
    parse_pattern,
    suggest,
)
from .calibrate import ensure_calibrated
from .fingerprint import this_machine
from .operands import Operand, dense_operand, operand, packed_operand
from .profile import Cost, CostRow, Profile
from .store import CostStore
from .target import AbstractTarget, targets, why_not_packed
from .timing import Call, Samples, interleave

Shape = tuple[int, int]
Choice = tuple[AbstractPattern, ValueType]

DEFAULT_MAX_AGE_DAYS = 90.0
# BERT-base: what the kernels' own gates are stated at.
DEFAULT_SHAPES: tuple[Shape, ...] = ((768, 768), (3072, 768), (768, 3072))
DEFAULT_TOKENS = (1, 64, 1024)
DEFAULT_PATTERNS = tuple(
    parse_pattern(text)
    for text in ("2:4", "4:8", "50%", "1:4", "2:4x4", "1:4x4", "2:4x16", "4x1@75%", "4x1@50%", "4x1@35%", "4x1@25%")
)
# Between measured token counts at most this far apart the ratio is interpolated, else measured.
_NEAR = 2.5
# A candidate group is measured for about so long where no minutes are given.
_GROUP_S = 1.5


@targets.register("this")
@final
class ThisTarget(AbstractTarget):
    """This machine. What is not in the cache is measured when asked for.

    Args:
        threads: intra-op threads; one thread is timed by CPU time, more by wall time.
        store: where measurements are kept; default the user's cache.
        max_age_days: older rows are not used.
        stale: what to do when the cache only holds rows of another machine, version or date: `measure` again,
            or `refuse` with a `ProfileError`.
    """

    about = "this machine, measured"

    def __init__(
        self,
        threads: int = 1,
        store: CostStore | None = None,
        max_age_days: float = DEFAULT_MAX_AGE_DAYS,
        stale: Literal["measure", "refuse"] = "measure",
    ) -> None:
        self.threads = threads
        self._store = store
        self._max_age_days = max_age_days
        self._stale = stale
        self._profile: Profile | None = None
        self._refused: dict[tuple[Shape, Choice], list[str]] = {}

    @property
    def store(self) -> CostStore:
        """Where measurements are kept."""
        if self._store is None:
            self._store = CostStore()
        return self._store

    @property
    def profile(self) -> Profile:
        """What is known of this machine so far.

        Raises:
            ProfileError: the cache is stale and this target refuses to measure again.
        """
        if self._profile is None:
            machine = this_machine()
            self._profile = self.store.read(machine, self.threads, self._max_age_days)
            if not self._profile.rows and self._stale == "refuse":
                reasons = self.store.why_stale(machine, self.threads, self._max_age_days)
                raise ProfileError(
                    f"There is no valid profile of this machine in {self.store.path}"
                    + (f": it holds {'; '.join(reasons)}" if reasons else "")
                    + ". Measure it with `sparsewright profile`."
                )
        return self._profile

    def layer_cost(self, shape: Shape, pattern: AbstractPattern, tokens: int, value_dtype: ValueType = "fp32") -> Cost:
        if not self._knows(shape, (pattern, value_dtype), tokens):
            self.prepare([shape], [pattern], [tokens], [value_dtype])
        return self.profile.cost(shape, pattern, tokens, value_dtype)

    def can_run(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        reasons = why_not_packed(pattern, shape)
        return reasons or self._refused.get((shape, (pattern, "fp32")), [])

    def describe(self) -> dict[str, Any]:
        return {**self.profile.machine, "created": self.profile.created, "threads": self.threads}

    def prepare(
        self,
        shapes: Sequence[Shape],
        patterns: Sequence[AbstractPattern],
        tokens: Sequence[int],
        value_dtypes: Sequence[ValueType] = ("fp32",),
        minutes: float | None = None,
    ) -> None:
        """Measure what is missing; choices that cannot run are left out (`can_run` tells why).

        Args:
            shapes: `(out, in)` of each layer kind.
            patterns: dense is always measured beside them.
            tokens: token counts.
            value_dtypes: of the kept values; `int8` also measures the dense int8 layer. Patterns whose rows choose
                alone have int8 weights under float32 inputs, and are timed so.
            minutes: about how long all of it may take; None spends about 1.5 s on every shape and token count.
        """
        choices: list[Choice] = [(Dense(), "fp32")]
        for value_dtype in value_dtypes:
            wanted = (
                [Dense(), *patterns] if value_dtype == "int8" else [p for p in patterns if not isinstance(p, Dense)]
            )
            choices += [(p, value_dtype) for p in wanted]
        choices = list(dict.fromkeys(choices))
        work = []
        for shape in dict.fromkeys((int(out), int(in_)) for out, in_ in shapes):
            able = [choice for choice in choices if not self.can_run(choice[0], shape)]
            for count in dict.fromkeys(tokens):
                missing = [choice for choice in able if not self._knows(shape, choice, count)]
                if missing:
                    work.append(_Group(shape, count, tuple(missing)))
        deadline = None if minutes is None else time.perf_counter() + 60 * minutes
        operands: dict[tuple[Shape, Choice], Operand] = {}
        for number, group in enumerate(work):
            if number and work[number - 1].shape != group.shape:
                operands.clear()
            left = _GROUP_S if deadline is None else (deadline - time.perf_counter()) / (len(work) - number)
            self._measure(group, operands, max(0.05, left))

    def _knows(self, shape: Shape, choice: Choice, tokens: int) -> bool:
        known = self.profile.tokens(shape, *choice)
        if tokens in known:
            return True
        below = [count for count in known if count < tokens]
        above = [count for count in known if count > tokens]
        if below and above:
            return above[0] <= _NEAR * below[-1]
        # Beyond the largest measurement a large layer grows in proportion.
        return bool(below) and below[-1] >= 1024 and tokens <= 4 * below[-1]

    def _measure(self, group: "_Group", operands: dict[tuple[Shape, Choice], Operand], seconds: float) -> None:
        x = _inputs(group.tokens, group.shape)
        dense: Choice = (Dense(), "fp32")
        calls: dict[Choice, Call] = {}
        for choice in dict.fromkeys((dense, *group.choices)):
            run = operands.get((group.shape, choice))
            try:
                if run is None:
                    run = operands[group.shape, choice] = operand(group.shape, *choice)
                with torch.inference_mode():
                    run(x)
            except (KernelError, LayoutError) as error:
                self._refused[group.shape, choice] = [str(error)]
                continue
            calls[choice] = _bind(run, x)
        named = {f"{pattern} {value_dtype}": call for (pattern, value_dtype), call in calls.items()}
        samples = interleave(named, threads=self.threads, rounds=(5, 40), seconds=seconds)
        reference = samples["dense fp32"].median
        rows = [
            _row(group, choice, samples[f"{choice[0]} {choice[1]}"], reference)
            for choice in calls
            # The dense row is the clock that seconds are told by: it is kept once measured.
            if choice in group.choices
        ]
        self.store.write(self.profile, rows)
        self._profile = self.profile.merged(rows)

    def layout_ratio(
        self, shape: Shape, pattern: AbstractPattern, tokens: int, value_dtype: ValueType, layout: str
    ) -> float:
        """Seconds in a named layout / seconds of torch's dense linear, timed now: the cache knows no layouts.

        Raises:
            LayoutError, KernelError: the layout does not store it, or no kernel runs it.
        """
        x = _inputs(tokens, shape)
        runs = {"dense": dense_operand(shape), layout: packed_operand(shape, pattern, value_dtype, layout)}
        with torch.inference_mode():
            runs[layout](x)
        calls = {name: _bind(run, x) for name, run in runs.items()}
        samples = interleave(calls, threads=self.threads, rounds=(5, 40), seconds=_GROUP_S)
        return samples[layout].median / samples["dense"].median

    def remeasure(self) -> None:
        """Forget all measurements of this machine."""
        self.store.forget(this_machine())
        self._profile = None


@dataclass(frozen=True)
class _Group:
    """What is timed in one interleaved run."""

    shape: Shape
    tokens: int
    choices: tuple[Choice, ...]


def _inputs(tokens: int, shape: Shape) -> torch.Tensor:
    return torch.randn((tokens, shape[1]), generator=torch.Generator().manual_seed(1))


def _bind(run: Operand, x: torch.Tensor) -> Call:
    return lambda: run(x)


def _row(group: _Group, choice: Choice, samples: Samples, dense_s: float) -> CostRow:
    low, high = samples.quartiles()
    return CostRow(
        shape=group.shape,
        pattern=str(choice[0]),
        value_dtype=choice[1],
        tokens=group.tokens,
        seconds=samples.median,
        dense_seconds=dense_s,
        low=low,
        high=high,
        rounds=len(samples.cpu),
    )


def profile(
    target: str = "this",
    *,
    shapes: Iterable[Shape] | None = None,
    patterns: Iterable[AbstractPattern | str] | None = None,
    tokens: Iterable[int] = DEFAULT_TOKENS,
    value_dtypes: Sequence[ValueType] = ("fp32",),
    minutes: float | None = None,
    threads: int = 1,
    remeasure: bool = False,
    out: str | PathLike[str] | None = None,
) -> Profile:
    """Measure what layers cost on this machine.

    Args:
        target: `this`; other machines are profiled on themselves.
        shapes: `(out, in)`; default the three shapes of BERT-base.
        patterns: default the CPU search space.
        tokens: token counts.
        value_dtypes: of the kept values; `int8` adds the dense int8 layer.
        minutes: about how long measuring may take.
        threads: intra-op threads.
        remeasure: forget earlier measurements of this machine first.
        out: also write the profile to this JSON file, so that it can travel.

    Returns:
        All that is known of this machine at this thread count.

    Raises:
        ProfileError: another target is named, or a named pattern cannot run at one of the shapes.
    """
    if target != "this":
        raise ProfileError(
            f"Only `this` machine can be measured, got {target!r}. Run `sparsewright profile --out FILE.json` there."
        )
    unknown = sorted(set(value_dtypes) - set(VALUE_BITS))
    if unknown:
        raise ProfileError(f"There are no {unknown[0]!r} values. {suggest(unknown[0], VALUE_BITS)}")
    machine = ThisTarget(threads=threads)
    if remeasure:
        machine.remeasure()
    ensure_calibrated(minutes, again=remeasure)
    sizes = list(shapes or DEFAULT_SHAPES)
    chosen = list(DEFAULT_PATTERNS)
    if patterns is not None:
        chosen = [parse_pattern(pattern) for pattern in patterns]
        for pattern in chosen:
            # Asked for by name, so that leaving it out silently would be an answer to another question.
            for shape in sizes:
                reasons = machine.can_run(pattern, shape)
                if reasons:
                    raise ProfileError(
                        f"{pattern} cannot be measured at {shape[0]}x{shape[1]}: {'; '.join(reasons)}. Leave one of "
                        "them out."
                    )
    machine.prepare(sizes, chosen, list(tokens), value_dtypes, minutes)
    if out is not None:
        machine.profile.save(out)
    return machine.profile


def profile_model(
    model_shapes: Iterable[Shape],
    patterns: Iterable[AbstractPattern | str],
    tokens: Iterable[int],
    *,
    value_dtypes: Sequence[ValueType] = ("fp32",),
    threads: int = 1,
    minutes: float = 1.5,
) -> ThisTarget:
    """The target `this`, with everything a search over these layers asks for already measured.

    Args:
        model_shapes: `(out, in)` of every layer; repeated shapes are measured once.
        patterns: the search space.
        tokens: token counts that the layers will see.
        value_dtypes: of the kept values.
        threads: intra-op threads.
        minutes: about how long measuring may take.
    """
    ensure_calibrated(minutes)
    target = ThisTarget(threads=threads)
    parsed = [parse_pattern(pattern) for pattern in patterns]
    target.prepare(list(model_shapes), parsed, list(tokens), value_dtypes, minutes)
    return target
