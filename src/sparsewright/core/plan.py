"""Plans: layer name -> layer plan, pure data that travels as JSON.

Rules choose layers by exact name or by `re:` and a regular expression that must match the whole name; exact names win
over expressions, earlier expressions over later ones.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, final

from .errors import PatternError, PlanError, suggest
from .patterns import AbstractPattern, Dense, parse_pattern

ValueType = Literal["fp32", "fp16", "int8"]
VALUE_BITS: Mapping[str, int] = MappingProxyType({"fp32": 32, "fp16": 16, "int8": 8})

_VERSION = 1


@final
@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Attributes:
        pattern: where zeros may be; `Dense()` leaves the layer as it is.
        layout: name of a layout, or `auto`: the one that wins on the target.
        sparsifier: name of a sparsifier, or None: the one of the run.
        value_dtype: how kept values are stored and computed from.
        reason: why, in words for the report (mostly: why the layer stays dense).
    """

    pattern: AbstractPattern
    layout: str = "auto"
    sparsifier: str | None = None
    value_dtype: ValueType = "fp32"
    reason: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.value_dtype, str) or self.value_dtype not in VALUE_BITS:
            kinds = ", ".join(VALUE_BITS)
            raise PlanError(
                f"Value types are {kinds}; got {self.value_dtype!r}. {suggest(str(self.value_dtype), VALUE_BITS)}"
            )

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed from the layer."""
        return isinstance(self.pattern, Dense)

    def to_data(self) -> dict[str, str]:
        """Plain data, defaults left out."""
        data = {"pattern": str(self.pattern)}
        if self.layout != "auto":
            data["layout"] = self.layout
        if self.sparsifier is not None:
            data["sparsifier"] = self.sparsifier
        if self.value_dtype != "fp32":
            data["value_dtype"] = self.value_dtype
        if self.reason:
            data["reason"] = self.reason
        return data

    @staticmethod
    def from_data(data: Any) -> "LayerPlan":
        """Read a pattern text or a mapping with the keys of `to_data`.

        Raises:
            PlanError: unknown key or wrong type.
        """
        if isinstance(data, LayerPlan):
            return data
        if isinstance(data, str | AbstractPattern):
            return LayerPlan(parse_pattern(data))
        if not isinstance(data, Mapping) or "pattern" not in data:
            raise PlanError(f"A layer plan is a pattern text or a mapping with the key `pattern`, got {data!r}.")
        known = {"pattern", "layout", "sparsifier", "value_dtype", "reason"}
        for key in data:
            if key not in known:
                raise PlanError(f"A layer plan has no key {key!r}. {suggest(str(key), known)}")
        rest = {key: value for key, value in data.items() if key != "pattern"}
        for key, value in rest.items():
            if not (isinstance(value, str) or (key == "sparsifier" and value is None)):
                raise PlanError(f"The key {key!r} of a layer plan must be a text, got {value!r}.")
        return LayerPlan(parse_pattern(data["pattern"]), **rest)


@final
@dataclass(frozen=True)
class Plan:
    """Layer name -> layer plan, in the order of the model."""

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __hash__(self) -> int:
        return hash(tuple(self.layers.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be copied or sent to a process; the plain dict can.
        return (Plan, (dict(self.layers),))

    @property
    def sparse_layers(self) -> dict[str, LayerPlan]:
        """The layers from which something is removed."""
        return {name: layer for name, layer in self.layers.items() if not layer.is_dense}

    @property
    def int8_layers(self) -> dict[str, LayerPlan]:
        """The layers whose values are rounded to int8, dense ones included."""
        return {name: layer for name, layer in self.layers.items() if layer.value_dtype == "int8"}

    def patterns(self) -> dict[str, AbstractPattern]:
        """Layer name -> pattern."""
        return {name: layer.pattern for name, layer in self.layers.items()}

    def density(self, shapes: Mapping[str, tuple[int, int]]) -> float:
        """Kept weights / all weights over the plan's layers."""
        sizes = {name: shapes[name][0] * shapes[name][1] for name in self.layers}
        kept = sum(self.layers[name].pattern.density * size for name, size in sizes.items())
        return kept / max(1, sum(sizes.values()))

    def with_layer(self, name: str, layer: LayerPlan) -> "Plan":
        """A copy in which one layer is planned otherwise."""
        return Plan({**self.layers, name: layer})

    def with_sparsifier(self, sparsifier: str) -> "Plan":
        """A copy in which layers without a sparsifier of their own take this one."""
        return Plan(
            {
                name: layer if layer.sparsifier or layer.is_dense else replace(layer, sparsifier=sparsifier)
                for name, layer in self.layers.items()
            }
        )

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"version": _VERSION, "layers": {name: layer.to_data() for name, layer in self.layers.items()}}

    def to_json(self) -> str:
        """JSON text; layers keep their order."""
        return json.dumps(self.to_data(), indent=2)

    @staticmethod
    def from_data(data: Any) -> "Plan":
        """Read what `to_data` wrote.

        Raises:
            PlanError: not a plan, or a plan of a later version.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("layers"), Mapping):
            raise PlanError("A plan is a mapping with the keys `version` and `layers`. This file is something else.")
        if data.get("version") != _VERSION:
            raise PlanError(f"This release reads plans of version {_VERSION}, got {data.get('version')!r}.")
        layers = {}
        for name, layer in data["layers"].items():
            try:
                layers[str(name)] = LayerPlan.from_data(layer)
            except (PlanError, PatternError) as error:
                raise PlanError(f"Layer {name!r} of the plan: {error}") from error
        return Plan(layers)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read JSON text.

        Raises:
            PlanError: not JSON, or not a plan.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"The plan is not valid JSON: {error}.") from error
        return Plan.from_data(data)

    @staticmethod
    def uniform(names: Iterable[str], pattern: AbstractPattern | str, value_dtype: ValueType = "fp32") -> "Plan":
        """The same pattern for every named layer."""
        layer = LayerPlan(parse_pattern(pattern), value_dtype=value_dtype)
        return Plan(dict.fromkeys(names, layer))

    @staticmethod
    def from_rules(rules: Mapping[str, Any], names: Iterable[str]) -> "Plan":
        """Apply rules to the model's layers; layers that no rule names are left out of the plan.

        Args:
            rules: exact layer name or `re:EXPRESSION` -> pattern text or layer plan.
            names: all layer names of the model, in order.

        Raises:
            PlanError: a rule is no text or matches no layer, or an expression is not valid.
        """
        known = list(names)
        exact: dict[str, LayerPlan] = {}
        expressions: list[tuple[str, re.Pattern[str], LayerPlan]] = []
        for key, value in rules.items():
            if not isinstance(key, str):
                raise PlanError(f"A rule is a layer's name or re:EXPRESSION, got {key!r}. Write it as a text.")
            layer = LayerPlan.from_data(value)
            if not key.startswith("re:"):
                if key not in known:
                    raise PlanError(f"The rule {key!r} names no layer of this model. {suggest(key, known)}")
                exact[key] = layer
                continue
            try:
                compiled = re.compile(key[3:])
            except re.error as error:
                raise PlanError(f"The rule {key!r} is not a valid regular expression: {error}.") from error
            if not any(compiled.fullmatch(name) for name in known):
                raise PlanError(
                    f"The rule {key!r} matches no layer of this model (the whole name must match). "
                    f"Layers are named like {known[0] if known else 'nothing: the model has none'}."
                )
            expressions.append((key, compiled, layer))
        planned = {}
        for name in known:
            chosen = exact.get(name) or next((plan for _, rule, plan in expressions if rule.fullmatch(name)), None)
            if chosen is not None:
                planned[name] = chosen
        return Plan(planned)


def require_plan(plan: object) -> None:
    """Raise PlanError unless it is a plan, or None."""
    if plan is not None and not isinstance(plan, Plan):
        raise PlanError(
            f"A plan says what each layer gets, layer name -> LayerPlan, got {plan!r:.80}. Pass the one that sparsify_ "
            "or search returned (`.plan`), or none: the patterns stand beside the masks."
        )
