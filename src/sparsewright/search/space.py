"""The search space: what each layer may become, what each choice costs here, and why some choices are out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from ..core import (
    VALUE_BITS,
    AbstractPattern,
    Dense,
    LayerPlan,
    ModelError,
    Plan,
    PlanError,
    ProfileError,
    ValueType,
    parse_pattern,
    suggest,
)
from ..hardware import AbstractTarget, ModelTime
from ..layouts import layouts

Shape = tuple[int, int]

# Plain patterns lose least, shared ones run fastest: a plan mixes them per layer.
CPU_PATTERNS = (
    *("50%", "40%", "30%", "2:4", "4:8", "3:8"),
    *("2:4x4", "1:4x4", "2:4x16", "4x1@75%", "4x1@50%", "4x1@35%", "4x1@25%"),
)


@final
@dataclass(frozen=True)
class Choice:
    """What a layer may become."""

    pattern: AbstractPattern
    value_dtype: ValueType = "fp32"

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return isinstance(self.pattern, Dense)

    @property
    def text(self) -> str:
        """For tables: the pattern, and the value type where it is not fp32."""
        return str(self.pattern) + ("" if self.value_dtype == "fp32" else f" {self.value_dtype}")

    def size_bytes(self, shape: Shape, stored: ValueType | None = None) -> float:
        """Bytes in the file; `stored` where the file holds sparse values in another type than they run with."""
        kind = self.value_dtype if stored is None or self.is_dense or self.value_dtype == "int8" else stored
        if kind == "int8":
            return layouts.get("int8").expected_bytes(self.pattern, shape, VALUE_BITS[kind])
        return self.pattern.theoretical_bytes(shape, VALUE_BITS[kind])


@final
@dataclass(frozen=True)
class CostTable:
    """Costs of every layer and choice, in the form that the knapsack takes.

    Attributes:
        names: layers, in the order of the model.
        shapes: `(out, in)` per layer.
        choices: per layer; the first is dense.
        seconds: batch label -> per layer, per choice, seconds inside the model.
        rest_s: batch label -> seconds that no choice changes.
        size_bytes: per layer, per choice.
        rest_bytes: bytes of what is not in a layer (embeddings, norms, biases).
        reasons: layer -> why choices are missing or never win.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    choices: tuple[tuple[Choice, ...], ...]
    seconds: Mapping[str, tuple[tuple[float, ...], ...]]
    rest_s: Mapping[str, float]
    size_bytes: tuple[tuple[float, ...], ...]
    rest_bytes: float
    reasons: Mapping[str, tuple[str, ...]]

    @property
    def labels(self) -> list[str]:
        """Batch labels."""
        return list(self.seconds)

    def dense_pick(self) -> list[int]:
        """The pick that leaves every layer dense."""
        return [0] * len(self.names)

    def total_s(self, pick: Sequence[int], label: str) -> float:
        """End-to-end seconds of a pick at a batch."""
        return self.rest_s[label] + sum(row[choice] for row, choice in zip(self.seconds[label], pick))

    def speedup(self, pick: Sequence[int], label: str) -> float:
        """Dense end-to-end seconds / seconds of the pick."""
        return self.total_s(self.dense_pick(), label) / self.total_s(pick, label)

    def total_bytes(self, pick: Sequence[int]) -> float:
        """Bytes of the whole model under a pick."""
        return self.rest_bytes + sum(row[choice] for row, choice in zip(self.size_bytes, pick))

    def plan(self, pick: Sequence[int], sparsifier: str | None = None) -> Plan:
        """The pick as a plan; dense layers carry the reason."""
        planned = {}
        for name, choices, number in zip(self.names, self.choices, pick):
            choice = choices[number]
            why = self.reasons.get(name, ())
            untouched = choice.is_dense and choice.value_dtype != "int8"
            reason = (why[0] if why and len(choices) == 1 else "its loss is worth more than its time") * untouched
            planned[name] = LayerPlan(
                choice.pattern,
                sparsifier=None if choice.is_dense else sparsifier,
                value_dtype=choice.value_dtype,
                reason=reason,
            )
        return Plan(planned)

    def pick_of(self, plan: Plan) -> list[int]:
        """The pick that a plan stands for; a choice that is not in the space counts as dense."""
        pick = []
        for name, choices in zip(self.names, self.choices):
            layer = plan.layers.get(name)
            wanted = Choice(layer.pattern, layer.value_dtype) if layer is not None else Choice(Dense())
            pick.append(choices.index(wanted) if wanted in choices else 0)
        return pick


def make_choices(patterns: Iterable[AbstractPattern | str], value_dtypes: Sequence[ValueType]) -> list[Choice]:
    """Every sparse pattern with every value type; `int8` adds the dense int8 layer.

    Raises:
        PlanError: the value types are no list of known ones.
    """
    if isinstance(value_dtypes, str) or not isinstance(value_dtypes, Sequence) or not value_dtypes:
        raise PlanError(f"Value types are given as a list such as ['fp32', 'int8'], got {value_dtypes!r}.")
    unknown = [kind for kind in value_dtypes if not isinstance(kind, str) or kind not in VALUE_BITS]
    if unknown:
        raise PlanError(f"There are no {unknown[0]!r} values. {suggest(str(unknown[0]), VALUE_BITS)}")
    parsed = [parse_pattern(pattern) for pattern in patterns]
    made = [Choice(p, v) for p in parsed if not isinstance(p, Dense) for v in value_dtypes]
    return [*dict.fromkeys(made), *([Choice(Dense(), "int8")] if "int8" in value_dtypes else [])]


def cost_table(
    target: AbstractTarget,
    times: Mapping[str, ModelTime],
    patterns: Iterable[AbstractPattern | str] = CPU_PATTERNS,
    value_dtypes: Sequence[ValueType] = ("fp32",),
    *,
    rest_bytes: float = 0.0,
    dense_value_dtype: ValueType = "fp32",
    stored_value_dtype: ValueType | None = None,
    kernel_value_dtypes: Mapping[str, Sequence[ValueType]] | None = None,
    minutes: float | None = 1.5,
) -> CostTable:
    """Cost every choice of every layer.

    Args:
        target: where the model will run.
        times: batch label -> the dense model timed at that batch; all name the same layers.
        patterns: the search space; dense is always in it.
        value_dtypes: of kept values; `int8` adds the dense int8 layer.
        rest_bytes: bytes outside the layers.
        dense_value_dtype: how dense layers are stored in the file (fp16 halves them at no time).
        stored_value_dtype: how the file stores sparse values; None: as they run.
        kernel_value_dtypes: layer -> value types that its kernels take (convolutions take no int8); a layer that is not
            named takes all.
        minutes: about how long a measuring target may take.

    Returns:
        The costs; choices that cannot run, or are at no batch faster than dense and no smaller, are left out, with
        the reason.

    Raises:
        ModelError: no layers, or different layers at different batches.
    """
    if not times or not all(time.layers for time in times.values()):
        raise ModelError("No layer of this model can be sparse, so there is nothing to search.")
    first = next(iter(times.values()))
    names = tuple(first.layers)
    if any(tuple(time.layers) != names for time in times.values()):
        raise ModelError("The model was timed with different layers at different batches. Time the same layers.")
    shapes = tuple(first.layers[name].shape for name in names)
    wanted = make_choices(patterns, value_dtypes)
    _prepare(target, times, wanted, value_dtypes, minutes)
    dense = Choice(Dense(), dense_value_dtype)
    seconds: dict[str, list[tuple[float, ...]]] = {label: [] for label in times}
    kept_choices, sizes, reasons = [], [], {}
    for name, shape in zip(names, shapes):
        rows: dict[Choice, list[float]] = {dense: [time.layers[name].seconds for time in times.values()]}
        why = []
        for choice in wanted:
            taken = (kernel_value_dtypes or {}).get(name)
            if taken is not None and choice.value_dtype not in taken:
                why.append(f"{choice.text}: its kernels take {' and '.join(taken)} values only")
                continue
            said = target.can_run(choice.pattern, shape)
            smaller = choice.size_bytes(shape, stored_value_dtype) < dense.size_bytes(shape)
            try:
                found = [
                    time.layer_seconds(target, name, choice.pattern, choice.value_dtype) for time in times.values()
                ]
            except ProfileError as error:
                said = said or [str(error)]
            if said:
                why.append(f"{choice.text}: {'; '.join(said)}")
            elif all(s >= d for s, d in zip(found, rows[dense])) and not smaller:
                gain = max(d / s for s, d in zip(found, rows[dense]))
                why.append(f"{choice.text}: no faster than dense here ({gain:.2f}x) and no smaller")
            else:
                rows[choice] = found
        kept_choices.append(tuple(rows))
        sizes.append(tuple(choice.size_bytes(shape, stored_value_dtype) for choice in rows))
        for number, label in enumerate(times):
            seconds[label].append(tuple(found[number] for found in rows.values()))
        if why:
            reasons[name] = tuple(why)
    return CostTable(
        names=names,
        shapes=shapes,
        choices=tuple(kept_choices),
        seconds={label: tuple(rows) for label, rows in seconds.items()},
        rest_s={label: time.rest_s for label, time in times.items()},
        size_bytes=tuple(sizes),
        rest_bytes=rest_bytes,
        reasons=reasons,
    )


def _prepare(
    target: AbstractTarget,
    times: Mapping[str, ModelTime],
    wanted: Sequence[Choice],
    value_dtypes: Sequence[ValueType],
    minutes: float | None,
) -> None:
    """One measuring run for everything, so that costs are timed side by side."""
    layers = [layer for time in times.values() for layer in time.layers.values()]
    patterns = list(dict.fromkeys(choice.pattern for choice in wanted if not choice.is_dense))
    counts = sorted({layer.tokens_per_call for layer in layers})
    target.prepare([layer.shape for layer in layers], patterns, counts, value_dtypes, minutes)


def table_data(table: CostTable) -> list[dict[str, Any]]:
    """Rows for a report: one per layer and choice."""
    return [
        {
            "layer": name,
            "shape": list(shape),
            "pattern": str(choice.pattern),
            "value_dtype": choice.value_dtype,
            "seconds": {label: rows[layer][number] for label, rows in table.seconds.items()},
            "size_bytes": table.size_bytes[layer][number],
        }
        for layer, (name, shape, choices) in enumerate(zip(table.names, table.shapes, table.choices))
        for number, choice in enumerate(choices)
    ]
