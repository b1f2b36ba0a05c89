"""Write docs/tables.md from the registries, the pattern forms and the recipe's keys.

With `--check` nothing is written; the exit code tells whether the page is up to date.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from markdown_table import table
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sparsewright.core import AbstractPattern, Registry, parse_pattern
from sparsewright.hardware import targets
from sparsewright.layouts import layouts
from sparsewright.models import adapters
from sparsewright.models.tasks import tasks
from sparsewright.pipeline.recipe import Recipe
from sparsewright.pipeline.streaming import engines
from sparsewright.solvers import solvers
from sparsewright.sparsifiers import sparsifiers
from sparsewright.training import schedules

PAGE = Path(__file__).parents[1] / "docs" / "tables.md"

# One pattern of every form, each on a weight of this shape.
PATTERNS = {
    "dense": "nothing removed",
    "2:4": "2 of every 4 consecutive weights along `in`",
    "4:8": "4 of every 8: freer than `2:4`, loses less",
    "2:4x4": "as `2:4`, 4 consecutive outputs share the choice: faster",
    "2:4x16": "16 outputs share it: faster still, loses more",
    "1:4x4": "1 of every 4, shared by 4 outputs",
    "2:4t": "transposable: 2 of 4 in every row and every column of each 4 x 4 tile",
    "2:4tx4": "the same by blocks of 4 x 4 weights, in tiles of 4 x 4 blocks",
    "3:6:4": "n:m:g of STen: 3 of every 6 consecutive outputs per column, each choice used by 4 columns",
    "50%": "unstructured: any half of the layer",
    "10%": "unstructured: any tenth of the layer",
    "4x1@50%": "half of the columns of every 4 rows, anywhere: the fast form without the N:M rule",
    "4x1@25%": "a quarter of them",
}
SHAPE = (768, 768)

REGISTRIES: tuple[tuple[str, str, Registry[Any]], ...] = (
    ("Mask solvers", "Scores and a pattern in, a mask out.", solvers),
    ("Sparsifiers", "Weight, layer stats and pattern in; mask and possibly corrected weight out.", sparsifiers),
    ("Mask schedules", "When masks change during training, and to what.", schedules),
    ("Layouts", "How a masked weight is stored.", layouts),
    ("Targets", "A hardware description with a cost model; a profile file is one too.", targets),
    ("Engines", "Where `sparsify_file` solves layers: the same bits wherever it is.", engines),
    ("Model adapters", "Which layers a model has, and in which order they run.", adapters),
    ("Tasks", "What a model is calibrated, recovered and judged on.", tasks),
)


def about(thing: Any) -> str:
    """What a class says of itself in `about`, in its docstring, or (where that only lists tensors) in its file's."""
    text = getattr(thing, "about", "") or inspect.getdoc(type(thing)) or ""
    if not text or text.startswith("Tensors:"):
        text = inspect.getdoc(inspect.getmodule(type(thing))) or ""
    return " ".join(text.split("\n\n")[0].split()) + _options(thing)


def _options(thing: Any) -> str:
    """The recipe keys of a task; empty for everything else."""
    task = getattr(thing, "task", None)
    if task is None:
        return ""
    given = ("tokenizer", "folder", "seed")
    parameters = [part for name, part in inspect.signature(task).parameters.items() if name not in given]
    texts = [
        f"`{part.name}`" if part.default is inspect.Parameter.empty else f"`{part.name}` ({part.default})"
        for part in parameters
    ]
    return f". Options: {', '.join(texts)}" if texts else ""


def pattern_row(text: str) -> tuple[str, ...]:
    """What one pattern costs at `SHAPE`."""
    pattern: AbstractPattern = parse_pattern(text)
    dense = parse_pattern("dense")
    shares = [pattern.theoretical_bytes(SHAPE, bits) / dense.theoretical_bytes(SHAPE, 32) for bits in (32, 16)]
    meaning = PATTERNS[text]
    bits = f"{pattern.index_bits(SHAPE[1]):.3g}"
    return (f"`{text}`", meaning, f"{pattern.density:.0%}", bits, *(f"{share:.1%}" for share in shares))


def recipe_rows(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Every key of the recipe with its type and default."""
    for name, field in section.model_fields.items():
        inner = _section_of(field)
        if inner is not None:
            about = " ".join((inspect.getdoc(inner) or "").split())
            needed = "required" if field.is_required() else "none" if field.default is None else "see its keys"
            yield (f"`{prefix}{name}`", needed, about)
            yield from recipe_rows(inner, f"{prefix}{name}.")
        else:
            yield (f"`{prefix}{name}`", _default(field), _type(field))


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(field: FieldInfo) -> str:
    bounds = [_bound(rule) for rule in field.metadata]
    words = {"str": "text", "float": "number", "int": "whole number", "bool": "true or false", "None": "none"}
    kinds = [kind for kind in _leaves(field.annotation) if kind is not type(None)]
    if kinds and all(isinstance(kind, str) for kind in kinds):
        return "one of " + ", ".join(f"`{kind}`" for kind in kinds)
    names = [words.get(getattr(kind, "__name__", ""), "mapping") for kind in kinds]
    many = "a list of " if "tuple[" in str(field.annotation) else ""
    return many + " or ".join(dict.fromkeys(names)) + "".join(f", {bound}" for bound in bounds if bound)


def _leaves(annotation: Any) -> list[Any]:
    """The plain types, or the literal values, inside an annotation."""
    if hasattr(annotation, "__metadata__"):
        return _leaves(annotation.__origin__)
    parts = get_args(annotation)
    if not parts or getattr(annotation, "__origin__", None) is dict:
        return [dict if getattr(annotation, "__origin__", None) is dict else annotation]
    return [leaf for part in parts if part is not Ellipsis for leaf in _leaves(part)]


def _bound(rule: Any) -> str:
    for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if hasattr(rule, name):
            return f"{word} {getattr(rule, name):g}"
    return ""


def page() -> str:
    """The whole page."""
    parts = [
        "# What is there",
        "This page is written by `scripts/make_docs_tables.py` from the code; a test keeps the two equal.",
        "## Patterns",
        f"Bytes are of a {SHAPE[0]} x {SHAPE[1]} weight against dense fp32, index included.",
        table(
            ("text", "meaning", "density", "index bits per weight", "bytes, fp32 values", "bytes, fp16 values"),
            [pattern_row(text) for text in PATTERNS],
        ),
    ]
    for title, what, registry in REGISTRIES:
        body = [(f"`{name}`", about(thing)) for name, thing in registry.items()]
        parts += [f"## {title}", what, table(("name", "what it is"), body)]
    parts += [
        "## Keys of a recipe",
        "Quality is a fraction in recipes: `0.02` is two points. An unknown key is an error naming the nearest one.",
        table(("key", "default", "what it is"), list(recipe_rows(Recipe))),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted else 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
