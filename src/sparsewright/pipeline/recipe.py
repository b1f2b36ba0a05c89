"""Recipes: the YAML a user writes, read with an allow-list and clear errors.

YAML 1.1 reads an unquoted `2:4` as the base-60 number 124; the loader here has no base-60 numbers, so patterns may
stand without quotes.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..core import Edge, FileError, PatternError, RecipeError, parse_pattern, suggest
from ..search import CPU_PATTERNS, Budget
from ..training import schedules

# `sw.search` without a recipe uses the same space.
DEFAULT_PATTERNS = CPU_PATTERNS


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@final
class TaskSection(_Section):
    """Data and the number the model is judged by. Keys besides `name` are options of that task."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options."""
        return dict(self.model_extra or {})


@final
class TrainSection(_Section):
    """Training of the dense model before anything is removed, on the task's labelled training images.

    `shift` moves every image by up to so many pixels each way, at random, whenever it is trained on.
    """

    steps: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    shift: Annotated[int, Field(ge=0)] = 0


@final
class BudgetSection(_Section):
    """Bounds on the result; quality in the task's unit (0.02 = two points)."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    max_quality_drop: Annotated[float, Field(ge=0)] | None = None
    or_standard_errors: Annotated[float, Field(ge=0)] = 0.0
    size_bytes: Annotated[int, Field(gt=0)] | None = None
    worst_slice_drop: Annotated[float, Field(ge=0)] | None = None

    def as_budget(self) -> Budget:
        """The search's bounds."""
        return Budget(
            speedup=self.speedup,
            max_quality_drop=self.max_quality_drop,
            size_bytes=self.size_bytes,
            worst_slice_drop=self.worst_slice_drop,
        )


@final
class SparsifySection(_Section):
    """Which layers, which patterns, by which method (`auto`: the best per layer). `edge`: what becomes of tiles that
    a layer's end cuts off, in a plan of the recipe's own: refused, kept to at most as much as whole ones, or dense."""

    method: str = "sparsegpt"
    edge: Edge = "error"
    patterns: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_PATTERNS
    value_dtypes: Annotated[tuple[Literal["fp32", "fp16", "int8"], ...], Field(min_length=1)] = ("fp32",)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None

    @field_validator("patterns")
    @classmethod
    def _parse(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_pattern(text)) for text in texts)


@final
class SearchSection(_Section):
    """How long to look: plans truly evaluated, plans recovered until one holds the budget, and the share of a one-shot
    loss that recovery is expected to win back. With `recover_uniform` the uniform plan that the chosen one must beat is
    recovered as well, so that both are judged alike, at the price of one recovery more."""

    evaluations: Annotated[int, Field(ge=1)] = 4
    attempts: Annotated[int, Field(ge=1)] = 2
    expected_recovery: Annotated[float, Field(ge=0, lt=1)] = 0.3
    recover_uniform: bool = False


@final
class RecoverSection(_Section):
    """Distillation from the dense model after one-shot; `minutes` is turned into steps once, by timing.

    `lr: auto` tries three learning rates for a few steps each and keeps the best. `schedule` says how masks move
    meanwhile, each within its pattern, and `every` how many steps lie between two changes.
    """

    enabled: bool = True
    minutes: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    schedule: str = "fixed"
    every: Annotated[int, Field(ge=1)] | None = None

    @field_validator("schedule")
    @classmethod
    def _moves_masks(cls, name: str) -> str:
        able = [known for known, schedule in schedules.items() if not schedule.starts_dense]
        if name not in able:
            raise ValueError(f"recovery moves masks by {', '.join(able)}")
        return name

    @model_validator(mode="after")
    def _one_bound(self) -> "RecoverSection":
        if self.enabled and (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps, or set enabled: false")
        return self


@final
class SaveSection(_Section):
    """How the bundle stores kept values and tensors that were not sparsified.

    Both are fp32 when the model runs; `dense: fp16` falls back to fp32 where it breaks the budget. None: kept values
    are stored as they run.
    """

    values: Literal["fp32", "fp16"] | None = "fp16"

    dense: Literal["fp32", "fp16"] = "fp16"


@final
class MeasureSection(_Section):
    """What is timed at the end, interleaved in one run.

    With `energy_seconds` every candidate then runs alone for so long at each batch size, while a power meter writes its
    log for `sparsewright report --power`. 0, or a processor whose own counter can be read, leaves that out.
    """

    batches: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 32)
    length: Annotated[int, Field(ge=1)] = 64
    threads: Annotated[int, Field(ge=1)] = 1
    rivals: Literal["all", "none"] = "all"
    seconds: Annotated[float, Field(gt=0)] = 60.0
    energy_seconds: Annotated[float, Field(ge=0)] = 0.0


@final
class PricesSection(_Section):
    """What a machine costs, for the return-on-investment table; without prices it shows ratios only."""

    cost_per_machine_hour: Annotated[float, Field(gt=0)]
    machines: Annotated[int, Field(ge=1)] = 1
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.5
    engineering_cost: Annotated[float, Field(ge=0)] = 0.0
    currency: str = "USD"


@final
class Recipe(_Section):
    """A whole run, as the user wrote it."""

    model: str
    task: TaskSection
    target: Annotated[tuple[str, ...], Field(min_length=1)] = ("this",)
    run_folder: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train: TrainSection | None = None
    budget: BudgetSection = BudgetSection(max_quality_drop=0.02)
    sparsify: SparsifySection = SparsifySection()
    search: SearchSection = SearchSection()
    recover: RecoverSection = RecoverSection(minutes=4.0)
    save: SaveSection = SaveSection()
    measure: MeasureSection = MeasureSection()
    prices: PricesSection | None = None

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("task", mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, complete with defaults."""
        return self.model_dump(mode="json")


class _Loader(yaml.SafeLoader):
    """SafeLoader without base-60 integers and floats."""


def _without_base_60() -> None:
    kept: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for start, rows in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kept[start] = [row for row in rows if row[0] not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
    _Loader.yaml_implicit_resolvers = kept
    integer = r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[0-1_]+)"
    point = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    exponent = r"[-+]?[0-9]+[eE][-+]?[0-9]+"
    first = list("-+.0123456789")
    _Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{integer})$"), first)
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{point}|{exponent})$"), first)


_without_base_60()


def read_yaml(text: str) -> Any:
    """Plain data from YAML text, base-60 numbers off.

    Raises:
        RecipeError: not YAML; the message says where.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe is not valid YAML: {' '.join(str(error).split())}.") from error


def load_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """Read a recipe from a YAML file or from plain data.

    Raises:
        RecipeError: unknown key (with the nearest known one), wrong type or value; every fault is named.
        FileError: the file cannot be read.
    """
    if isinstance(source, Mapping):
        data: Any = dict(source)
    else:
        try:
            data = read_yaml(Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"The recipe {source} cannot be read: {error}. Check the path.") from error
    if not isinstance(data, Mapping):
        raise RecipeError(f"A recipe is a mapping with the keys `model`, `task`, ...; got {type(data).__name__}.")
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        rows = error.errors()
        # A list with a wrong item also counts as too short: the item says it all.
        wrong = [row["loc"] for row in rows]
        told = [
            row
            for row in rows
            if row["type"] != "too_short" or not any(loc[: len(row["loc"])] == row["loc"] != loc for loc in wrong)
        ]
        raise RecipeError("; ".join(_fault(row) for row in told)) from error
    except PatternError as error:
        raise RecipeError(f"sparsify.patterns: {error}") from error


def _section_at(path: tuple[Any, ...]) -> type[BaseModel]:
    """The model class that holds the key at `path`."""
    section: type[BaseModel] = Recipe
    for key in path[:-1]:
        field = section.model_fields.get(str(key))
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return section


def _fault(row: Any) -> str:
    path = tuple(row["loc"])
    where = ".".join(str(key) for key in path) or "the recipe"
    if row["type"] == "extra_forbidden":
        known = list(_section_at(path).model_fields)
        near = get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else suggest(str(path[-1]), known)
        return f"The recipe has no key {where!r}. {hint}"
    if row["type"] == "missing":
        return f"The recipe lacks the key {where!r}"
    came = "" if isinstance(row.get("input"), Mapping) else f", got {row.get('input')!r}"
    message = str(row["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}{came}"
