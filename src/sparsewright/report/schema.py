"""What `results.json` holds: one description, checked before anything is drawn.

Every section may be absent (it reads "not measured"), and unknown keys pass, so that a later release may add some.
Units: seconds, bytes, joules; quality as a fraction (0.692), a drop is dense minus ours, so positive means lost.
"""

from collections.abc import Mapping
from typing import Any, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core import FileError

VERSION = 1

Interval = tuple[float, float]


class AbstractRecord(BaseModel):
    """Base: immutable, unknown keys pass, NaN and infinity do not."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())


@final
class Tool(AbstractRecord):
    """What wrote the file."""

    name: str = "sparsewright"
    version: str = ""


@final
class Model(AbstractRecord):
    """The model before anything was removed."""

    source: str = "model"
    family: str = ""
    parameters: int | None = None
    dense_bytes: int | None = None


@final
class SplitFacts(AbstractRecord):
    """One split of the labelled data."""

    n: int | None = None
    sha256: str = ""


@final
class DataFacts(AbstractRecord):
    """The labelled task."""

    task: str = ""
    metric: str = "quality"
    unit: str = "points"
    facts: dict[str, Any] = Field(default_factory=dict)
    validation: SplitFacts = Field(default_factory=SplitFacts)
    test: SplitFacts = Field(default_factory=SplitFacts)


@final
class BudgetFacts(AbstractRecord):
    """The bounds of the run; drops are fractions, `or_standard_errors` widens `max_quality_drop` to so many of them."""

    speedup: float | None = None
    max_quality_drop: float | None = None
    or_standard_errors: float | None = None
    size_bytes: float | None = None
    worst_slice_drop: float | None = None


@final
class Slice(AbstractRecord):
    """Quality on one class or user-named part of a split."""

    name: str
    n: int | None = None
    dense: float | None = None
    ours: float | None = None
    drop: float | None = None
    interval: Interval | None = None


@final
class Pair(AbstractRecord):
    """A further metric of the dense model and of ours."""

    dense: float | None = None
    ours: float | None = None


@final
class SplitQuality(AbstractRecord):
    """Quality on one split; `interval` is the paired bootstrap 95 % interval of `drop`."""

    dense: float | None = None
    one_shot: float | None = None
    ours: float | None = None
    drop: float | None = None
    stderr: float | None = None
    interval: Interval | None = None
    n: int | None = None
    slices: list[Slice] = Field(default_factory=list)
    extra: dict[str, Pair | float] = Field(default_factory=dict)


@final
class Quality(AbstractRecord):
    """Quality on both splits."""

    validation: SplitQuality | None = None
    test: SplitQuality | None = None


@final
class Layer(AbstractRecord):
    """What was done to one layer."""

    name: str
    shape: list[int] = Field(default_factory=list)
    pattern: str = "dense"
    layout: str = ""
    value_dtype: str = ""
    sparsifier: str | None = None
    density: float | None = None
    dense_s: float | None = None
    predicted_s: float | None = None
    sensitivity: float | None = None
    bytes: float | None = None
    reason: str = ""

    @property
    def choice(self) -> str:
        """The pattern, and the type of its values where they are int8."""
        return f"{self.pattern} int8" if self.value_dtype == "int8" else self.pattern

    @property
    def is_untouched(self) -> bool:
        """Whether the layer runs as it did: dense, in floats."""
        return self.pattern == "dense" and self.value_dtype != "int8"


@final
class Sensitivity(AbstractRecord):
    """What one pattern costs one layer: error on calibration data, and time."""

    layer: str
    pattern: str
    error: float | None = None
    cost_s: float | None = None


@final
class FrontPoint(AbstractRecord):
    """One whole-model plan that the search looked at; `quality` and `drop` only where it was evaluated."""

    label: str
    predicted_s: float | None = None
    measured_s: float | None = None
    predicted_speedup: float | None = None
    predicted_drop: float | None = None
    quality: float | None = None
    drop: float | None = None
    size_bytes: float | None = None
    kind: str = "search"
    chosen: bool = False
    patterns: dict[str, int] = Field(default_factory=dict)


@final
class Latency(AbstractRecord):
    """One timed way to run the model at one batch size."""

    name: str
    batch: int
    length: int | None = None
    threads: int | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    cpu_s: float | None = None
    speedup: float | None = None
    speedup_interval: Interval | None = None


@final
class TableRow(AbstractRecord):
    """One row of the end table; `latency_s` and `speedup` by batch size as text; `reason`: why figures are missing.

    `inside_quality` is about the budget's bounds on quality alone, `inside_budget` about all of its bounds.
    """

    name: str
    quality: float | None = None
    drop: float | None = None
    stderr: float | None = None
    latency_s: dict[str, float | None] = Field(default_factory=dict)
    speedup: dict[str, float | None] = Field(default_factory=dict)
    throughput_per_s: float | None = None
    file_bytes: float | None = None
    load_s: float | None = None
    cold_start_s: float | None = None
    peak_rss_bytes: float | None = None
    inside_quality: bool | None = None
    inside_budget: bool | None = None
    reason: str = ""


@final
class PredictionRow(AbstractRecord):
    """Predicted and measured end-to-end time; `miss` is a fraction of the measured time."""

    batch: int
    predicted_s: float | None = None
    measured_s: float | None = None
    miss: float | None = None


@final
class Prediction(AbstractRecord):
    """Predicted against measured."""

    rows: list[PredictionRow] = Field(default_factory=list)
    worst_miss: float | None = None
    within_10_percent: bool | None = None


@final
class Bytes(AbstractRecord):
    """File sizes of the whole model."""

    dense_fp32: float | None = None
    dense_fp16: float | None = None
    ours: float | None = None
    theoretical: float | None = None


@final
class Energy(AbstractRecord):
    """Joules per inference, by the name of the end table's row; `by_batch`: the same at every batch size as text."""

    source: str = ""
    joules_per_inference: dict[str, float] = Field(default_factory=dict)
    by_batch: dict[str, dict[str, float]] = Field(default_factory=dict)


@final
class EnergyWindow(AbstractRecord):
    """When one candidate ran alone: UTC seconds since 1970, whole calls, items answered in them."""

    name: str
    batch: int = Field(ge=1)
    start: float
    end: float
    calls: int = Field(ge=1)
    items: int = Field(ge=1)

    @model_validator(mode="after")
    def _forward(self) -> "EnergyWindow":
        if self.end <= self.start:
            raise ValueError("a window ends after it starts")
        return self


@final
class Prices(AbstractRecord):
    """What the user says things cost; `utilisation` is a fraction of a machine's full throughput."""

    cost_per_machine_hour: float | None = Field(default=None, ge=0)
    utilisation: float | None = Field(default=None, gt=0, le=1)
    machines: float | None = Field(default=None, ge=0)
    engineering_cost: float | None = Field(default=None, ge=0)
    currency: str = ""


@final
class Device(AbstractRecord):
    """One plan on one target."""

    target: str
    plan: str
    predicted_s: float | None = None
    speedup: float | None = None


@final
class Timing(AbstractRecord):
    """How long one stage of the run took."""

    stage: str
    seconds: float


@final
class Results(AbstractRecord):
    """The whole of `results.json`, version 1."""

    version: int
    tool: Tool = Field(default_factory=Tool)
    created: str = ""
    environment: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    recipe_sha256: str = ""
    model: Model = Field(default_factory=Model)
    data: DataFacts = Field(default_factory=DataFacts)
    budget: BudgetFacts = Field(default_factory=BudgetFacts)
    quality: Quality = Field(default_factory=Quality)
    layers: list[Layer] = Field(default_factory=list)
    sensitivity: list[Sensitivity] = Field(default_factory=list)
    front: list[FrontPoint] = Field(default_factory=list)
    latency: list[Latency] = Field(default_factory=list)
    table: list[TableRow] = Field(default_factory=list)
    prediction: Prediction = Field(default_factory=Prediction)
    bytes: Bytes = Field(default_factory=Bytes)
    energy: Energy | None = None
    energy_windows: list[EnergyWindow] = Field(default_factory=list)
    prices: Prices | None = None
    devices: list[Device] = Field(default_factory=list)
    timings: list[Timing] = Field(default_factory=list)

    def row(self, name: str) -> TableRow | None:
        """The end table's row of this name."""
        return next((row for row in self.table if row.name == name), None)

    def latency_of(self, name: str, batch: int) -> Latency | None:
        """The timing of this name at this batch size."""
        return next((row for row in self.latency if row.name == name and row.batch == batch), None)


def read_results(results: Mapping[str, Any]) -> Results:
    """Check plain data read from a `results.json`.

    A section that is None counts as absent.

    Args:
        results: the JSON object.

    Raises:
        FileError: not an object of this kind, another version, or a field of a wrong type; names the first field.
    """
    if not isinstance(results, Mapping) or "version" not in results:
        raise FileError(
            "A results.json is an object with the key `version`, as `sparsewright run` writes it; "
            f"got {_what(results)}. Point to the results.json of a run folder."
        )
    if results["version"] != VERSION:
        raise FileError(
            f"This release reads results of version {VERSION}, got {results['version']!r}. "
            "Use the release that wrote them, or run the recipe again."
        )
    # A run keeps what depends on clocks apart, so that the rest can be compared between reruns.
    clocked = results.get("measured")
    together = {**results, **clocked} if isinstance(clocked, Mapping) else results
    present = {key: value for key, value in together.items() if value is not None}
    try:
        return Results.model_validate(present)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise FileError(
            f"The field `{place}` of the results is wrong: {first['msg'].lower()}, got {str(first['input'])[:60]!r}"
            f"{others}. Repair it, or run the recipe again."
        ) from error


def _what(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with the keys {', '.join(sorted(map(str, value))[:6]) or 'none'}"
    return f"{type(value).__name__}"
