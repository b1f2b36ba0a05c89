"""The manifest: what the bundle holds, as JSON in the file's metadata, read with an allow-list.

Everything in it is plain data; nothing in it is ever imported, called or opened. Fields under `measured` are free
and are left out of the content digest, so that two runs of one recipe can be told to agree.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch

from ..core import AbstractPattern, BundleError, PatternError, parse_pattern
from .header import DTYPES

FORMAT = "sparsewright"
VERSION = 1
View = Literal["linear", "transposed", "conv2d"]
VIEWS: tuple[str, ...] = ("linear", "transposed", "conv2d")
VALUE_TYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
LIBRARIES: tuple[str, ...] = ("transformers", "timm", "torch")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLANE = re.compile(r"[a-z][a-z0-9_]{0,31}")
_LEVEL = re.compile(r"L[1-9][0-9]?")
_MAX_DIMENSION = 2**31


@final
@dataclass(frozen=True)
class PackedLayer:
    """How one sparse weight is stored.

    Attributes:
        pattern: where zeros may be.
        layout: name of the layout that wrote the planes.
        value_dtype: a key of `VALUE_TYPES`.
        shape: `(out, in)` as the pattern sees it.
        view: `linear`: the parameter is `(out, in)`; `transposed`: `(in, out)`; `conv2d`: `(out, in, kh, kw)`.
        parameter_shape: shape of the parameter itself.
        dtype: safetensors name of the dtype that the module sees.
        planes: names of its planes, for instance `values` and `index`.
        run_dtype: a key of `VALUE_TYPES`: values are widened to it once, at load; empty: they run as stored.
    """

    pattern: AbstractPattern
    layout: str
    value_dtype: str
    shape: tuple[int, int]
    view: View
    parameter_shape: tuple[int, ...]
    dtype: str
    planes: tuple[str, ...]
    run_dtype: str = ""

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = {
            "pattern": str(self.pattern),
            "layout": self.layout,
            "value_dtype": self.value_dtype,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "planes": list(self.planes),
        }
        if self.run_dtype:
            data["run_dtype"] = self.run_dtype
        if self.view != "linear":
            data |= {"view": self.view, "parameter_shape": list(self.parameter_shape)}
        return data


@final
@dataclass(frozen=True)
class Level:
    """One sparse model of the file.

    Attributes:
        name: `L1`, `L2`, ...
        layers: module name -> how its weight is stored.
        quality: what evaluation gave, plain JSON; None = not given.
        cost: what the profile predicts, plain JSON; None = not given.
    """

    name: str
    layers: Mapping[str, PackedLayer]
    quality: Any = None
    cost: Any = None


@final
@dataclass(frozen=True)
class ModelSource:
    """Where the architecture comes from; enough to build transformers and timm models without their weights.

    Attributes:
        source: as in the recipe, for instance `hf:NAME`; never opened by `load`.
        family: what it does: `encoder`, `causal-lm`, `classifier`, `vision` or `generic`.
        library: whose code builds it: `transformers`, `timm`, or `torch` for everything else.
        architecture: transformers: name of the auto class; timm: name of the model; torch: the class name, for people.
        config: plain JSON settings of the architecture.
    """

    source: str | None = None
    family: str = "generic"
    library: str = "torch"
    architecture: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Manifest:
    """Everything that the file says of itself.

    Attributes:
        producer: name and version of the writer.
        model: where the architecture comes from.
        levels: sparsest first.
        tensors: tensor name -> sha256 hex of its bytes (pad tensors left out).
        dense_dtype: name -> (stored, original) dtype names, only where they differ.
        aliases: name of a tied tensor -> name under which it is stored.
        measured: dates and the like; not part of the content digest.
    """

    producer: str
    model: ModelSource
    levels: tuple[Level, ...]
    tensors: Mapping[str, str]
    dense_dtype: Mapping[str, tuple[str, str]]
    aliases: Mapping[str, str]
    measured: Mapping[str, Any]

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "producer": self.producer,
            "model": {
                "source": self.model.source,
                "family": self.model.family,
                "library": self.model.library,
                "architecture": self.model.architecture,
                "config": dict(self.model.config),
            },
            "levels": [
                {
                    "name": level.name,
                    "plan": {name: layer.to_data() for name, layer in level.layers.items()},
                    "quality": level.quality,
                    "cost": level.cost,
                }
                for level in self.levels
            ],
            "tensors": dict(self.tensors),
            "dense_dtype": {
                name: {"stored": stored, "original": original} for name, (stored, original) in self.dense_dtype.items()
            },
            "aliases": dict(self.aliases),
            "measured": dict(self.measured),
        }

    def to_json(self) -> str:
        """JSON text, one line, stable.

        Raises:
            BundleError: quality, cost, config or measured hold something that JSON cannot.
        """
        try:
            return json.dumps(self.to_data(), separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"The manifest takes plain JSON values only ({error}). Give numbers and texts."
            ) from error

    @property
    def content_digest(self) -> str:
        """Sha256 hex of all but `measured` and the producer: equal for equal models."""
        data = self.to_data()
        del data["measured"], data["producer"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def read_manifest(text: str) -> Manifest:
    """Read what `Manifest.to_json` wrote.

    Raises:
        BundleError: of another version, or any field that is not on the list or not of its type.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"The manifest is not valid JSON ({error}).") from error
    top = _mapping(data, "manifest")
    if top.get("format") != FORMAT:
        raise BundleError("The manifest is not one of sparsewright. Open the file with the library that wrote it.")
    if top.get("version") != VERSION or type(top["version"]) is not int:
        raise BundleError(
            f"This release reads bundles of version {VERSION}, the file has version {str(top.get('version'))[:20]}. "
            "Install the release that wrote it."
        )
    known = {"format", "version", "producer", "model", "levels", "tensors", "dense_dtype", "aliases", "measured"}
    _only(top, known, "manifest")
    levels = top["levels"]
    if not isinstance(levels, list) or not 1 <= len(levels) <= 99:
        raise BundleError("The manifest needs a list of one to 99 levels.")
    read = tuple(_level(level) for level in levels)
    if [level.name for level in read] != [f"L{number + 1}" for number in range(len(read))]:
        raise BundleError("The levels of the manifest must be named L1, L2, ... in order.")
    return Manifest(
        producer=_text(top["producer"], "producer"),
        model=_model(top["model"]),
        levels=read,
        tensors={
            name: _matching(value, _SHA256, f"sha256 of {name}")
            for name, value in _mapping(top["tensors"], "tensors").items()
        },
        dense_dtype={name: _dtypes(row, name) for name, row in _mapping(top["dense_dtype"], "dense_dtype").items()},
        aliases={
            name: _text(goal, f"alias {name}", 4096) for name, goal in _mapping(top["aliases"], "aliases").items()
        },
        measured=_mapping(require_plain(top["measured"], "measured"), "measured"),
    )


def require_plain(value: Any, where: str, depth: int = 8) -> Any:
    """Return `value` if it is made of JSON scalars, lists and mappings, at most `depth` deep.

    Raises:
        BundleError: anything else, NaN and infinity included.
    """
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth and isinstance(value, list | tuple):
        return [require_plain(item, where, depth - 1) for item in value]
    if depth and isinstance(value, Mapping):
        return {_text(key, where): require_plain(item, where, depth - 1) for key, item in value.items()}
    raise BundleError(f"The field {where!r} takes plain numbers, texts, lists and mappings, got {str(value)[:60]!r}.")


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"The field {where!r} of the manifest must be a mapping.")
    return value


def _only(data: Mapping[str, Any], known: set[str], where: str, optional: frozenset[str] = frozenset()) -> None:
    strange = sorted(set(data) - known - optional)
    missing = sorted(known - set(data))
    if strange or missing:
        what = f"has the unknown field {strange[0][:40]!r}" if strange else f"lacks the field {missing[0]!r}"
        raise BundleError(f"The {where[:80]} of the bundle {what}. Fetch or save the file again.")


def _text(value: Any, where: str, limit: int = 1024) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise BundleError(f"The field {where[:80]!r} of the manifest must be a text of at most {limit} characters.")
    return value


def _matching(value: Any, form: re.Pattern[str], where: str) -> str:
    text = _text(value, where)
    if not form.fullmatch(text):
        raise BundleError(f"The field {where[:80]!r} of the manifest is malformed: {text[:40]!r}.")
    return text


def _dimensions(value: Any, where: str, ranks: range) -> tuple[int, ...]:
    good = isinstance(value, list) and len(value) in ranks
    if not good or not all(type(size) is int and 1 <= size <= _MAX_DIMENSION for size in value):
        raise BundleError(f"The shape of {where[:80]!r} in the manifest is impossible.")
    return tuple(value)


def _model(data: Any) -> ModelSource:
    row = _mapping(data, "model")
    _only(row, {"source", "family", "library", "architecture", "config"}, "field 'model'")
    if _text(row["library"], "library") not in LIBRARIES:
        raise BundleError(f"The model library is one of {', '.join(LIBRARIES)}, got {str(row['library'])[:40]!r}.")
    return ModelSource(
        source=None if row["source"] is None else _text(row["source"], "source", 4096),
        family=_text(row["family"], "family"),
        library=row["library"],
        architecture=_text(row["architecture"], "architecture"),
        config=_mapping(require_plain(row["config"], "config"), "config"),
    )


def _level(data: Any) -> Level:
    row = _mapping(data, "level")
    _only(row, {"name", "plan", "quality", "cost"}, "field 'level'")
    name = _matching(row["name"], _LEVEL, "name of a level")
    layers = {layer: read_packed_layer(layer, record) for layer, record in _mapping(row["plan"], "plan").items()}
    return Level(name, layers, require_plain(row["quality"], "quality"), require_plain(row["cost"], "cost"))


def read_packed_layer(name: str, data: Any) -> PackedLayer:
    """Read what `PackedLayer.to_data` wrote, trusting nothing; raises BundleError."""
    row = _mapping(data, name)
    known = {"pattern", "layout", "value_dtype", "dtype", "shape", "planes"}
    _only(row, known, f"layer {name!r}", frozenset({"view", "parameter_shape", "run_dtype"}))
    try:
        pattern = parse_pattern(_text(row["pattern"], name))
    except PatternError as error:
        raise BundleError(f"The layer {name[:80]!r} of the bundle has no valid pattern: {error}") from error
    if _text(row["value_dtype"], name) not in VALUE_TYPES:
        raise BundleError(f"The layer {name[:80]!r} has the unknown value type {str(row['value_dtype'])[:20]!r}.")
    run_dtype = _text(row.get("run_dtype", ""), name)
    # Integers would need their scales: only floating values can be widened.
    if run_dtype not in ("", "fp32", "fp16", "bf16") or (run_dtype and row["value_dtype"] == "int8"):
        raise BundleError(f"The layer {name[:80]!r} runs with the unknown value type {str(run_dtype)[:20]!r}.")
    if _text(row["dtype"], name) not in ("F64", "F32", "F16", "BF16"):
        raise BundleError(f"The layer {name[:80]!r} is seen as the unknown dtype {str(row['dtype'])[:20]!r}.")
    rows, columns = _dimensions(row["shape"], name, range(2, 3))
    view: Any = _text(row.get("view", "linear"), name)
    if view not in VIEWS:
        raise BundleError(f"The layer {name[:80]!r} has the unknown view {str(view)[:20]!r}.")
    original = _dimensions(row.get("parameter_shape", [rows, columns]), name, range(2, 6))
    expected = {"linear": original == (rows, columns), "transposed": original == (columns, rows)}
    if not expected.get(view, original[0] == rows and math.prod(original[1:]) == columns):
        raise BundleError(f"The layer {name[:80]!r} has a parameter shape that contradicts its shape.")
    planes = row["planes"]
    if not isinstance(planes, list) or not 1 <= len(planes) <= 8 or len(set(map(str, planes))) != len(planes):
        raise BundleError(f"The planes of layer {name[:80]!r} are malformed.")
    named = tuple(_matching(plane, _PLANE, f"plane of {name}") for plane in planes)
    return PackedLayer(
        pattern,
        _text(row["layout"], name),
        row["value_dtype"],
        (rows, columns),
        view,
        original,
        row["dtype"],
        named,
        run_dtype,
    )


def _dtypes(data: Any, name: str) -> tuple[str, str]:
    row = _mapping(data, name)
    _only(row, {"stored", "original"}, f"dtype record of {name!r}")
    if _text(row["stored"], name) not in DTYPES or _text(row["original"], name) not in DTYPES:
        raise BundleError(f"The dtype record of {name[:80]!r} names an unknown dtype.")
    return row["stored"], row["original"]
