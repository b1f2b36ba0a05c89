"""Write the tables of README and docs/masks.md from benchmarks/results: linear.csv, decode.csv, bert.csv, masks.csv.

With `--check` nothing is written; the exit code tells whether the pages say what the tables say.
"""

import csv
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from markdown_table import table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"

TOKENS = (1, 16, 64, 128, 1024)
ROWS = (
    "onnxruntime fp32",
    "torch dynamic int8",
    "dense int8",
    "4x1@50% int8",
    "4x1@25% int8",
    "16x1@10% int8",
    "2:4x2 int8",
    "2:4x4",
    "1:4x4",
    "1:8x4",
    "1:16x16",
    "4x1@10%",
    "16x1@10%",
    "2:4",
    "1:4",
    "10%",
)
BERT_ROWS = ("torch dynamic int8", "onnxruntime fp32", "1:4x4", "10%", "16x1@10%", "1:4x4 int8", "16x1@10% int8")
DECODE_ROWS = ("torch dynamic int8", "dense int8", "1:4x4", "1:4x16", "1:4x4 int8", "1:4x16 int8")


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown(name: str) -> str:
    """A plan's name; patterns as code."""
    return name if name.startswith(("torch", "onnxruntime")) else f"`{name}`"


def kernels() -> str:
    """Geometric means over BERT-base's shapes."""
    gains: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in read("linear.csv"):
        if row["model"] == "BERT-base":
            gains[row["pattern"], int(row["tokens"])].append(math.log(float(row["speedup"])))
    lines = [
        (shown(name), *(f"{math.exp(statistics.fmean(gains[name, tokens])):.2f}" for tokens in TOKENS)) for name in ROWS
    ]
    return table(("", *(f"{tokens} token{'s' * (tokens > 1)}" for tokens in TOKENS)), lines)


def bert() -> str:
    """Times of the whole encoder, as ratios."""
    gains = {(row["name"], row["batch"]): row for row in read("bert.csv")}
    lines = []
    for name in BERT_ROWS:
        cells = []
        for batch in ("1", "8"):
            row = gains[name, batch]
            cells += [f"{float(row['speedup']):.2f}", f"{float(row['against_int8']):.2f}"]
        lines.append((shown(name), *cells))
    head = ("", "batch 1: over torch fp32", "over torch int8", "batch 8: over torch fp32", "over torch int8")
    return table(head, lines)


def decode() -> str:
    """One token through a weight larger than the caches."""
    gains = {(row["name"], row["caches"]): row for row in read("decode.csv")}
    lines = [
        (
            shown(name),
            f"{float(gains[name, 'warm']['speedup']):.1f}",
            f"{float(gains[name, 'warm']['against_int8']):.1f}",
        )
        for name in DECODE_ROWS
    ]
    return table(("", "over torch fp32", "over torch dynamic int8"), lines)


MASK_PATTERNS = ("2:4t", "4:8t", "8:16t", "16:32t")


def masks() -> str:
    """Rates of the native solver by scores and instruction set, and the others with their errors."""
    rows = read("masks.csv")
    native = [row for row in rows if row["solver"] == "transposable" and not row["ms_per_call"]]
    lines: list[tuple[str, ...]] = []
    for isa in dict.fromkeys(row["instruction_set"] for row in native):
        for kind, count in dict.fromkeys((row["scores"], row["count"]) for row in native):
            found = {
                row["pattern"]: row
                for row in native
                if (row["instruction_set"], row["scores"], row["count"]) == (isa, kind, count)
            }
            cells = (
                f"{float(found[p]['certified_mw_per_s']):.0f} / {float(found[p]['mw_per_s']):.0f}"
                for p in MASK_PATTERNS
            )
            lines.append((isa, f"{kind}, {count.replace('_', ' ')}", *cells))
    first = table(("", "scores, count", *(f"`{pattern}` certified / not" for pattern in MASK_PATTERNS)), lines)
    others = [row for row in rows if row["solver"] != "transposable" and row["scores"] == "gauss"]
    kinds = dict.fromkeys(row["solver"].split(",")[0] for row in others)
    lines = []
    for name in kinds:
        found = {row["pattern"]: row for row in others if row["solver"].split(",")[0] == name}
        cells = (
            f"{float(found[p]['mw_per_s']):.2f}, {max(0.0, float(found[p]['error_percent'])):.3f} %"
            for p in MASK_PATTERNS
        )
        lines.append((name, *cells))
    second = table(("", *(f"`{pattern}`: rate, lost" for pattern in MASK_PATTERNS)), lines)
    return f"{first}\n\n{second}"


def perplexity() -> str:
    """Perplexity by pattern and sparsifier, with the density that came out."""
    rows = read("perplexity.csv")
    found = {(row["pattern"], row["method"]): row for row in rows}
    methods = tuple(dict.fromkeys(row["method"] for row in rows if row["method"]))
    lines = [("dense", *(found["dense", ""]["perplexity"] for _ in methods), "1")]
    for pattern in dict.fromkeys(row["pattern"] for row in rows if row["method"]):
        cells = []
        for method in methods:
            row = found[pattern, method]
            cells.append(row["perplexity"] + (f" ± {row['spread']}" if row["spread"] else ""))
        lines.append((f"`{pattern}`", *cells, found[pattern, methods[-1]]["density"]))
    return table(("", *methods, "density"), lines)


def alps_masks() -> str:
    """Layer error of ALPS by mask solver, and the share of its time that masks take."""
    rows = read("alps_masks.csv")
    found = {(row["solver"], row["pattern"]): row for row in rows}
    lines = []
    for solver in dict.fromkeys(row["solver"] for row in rows):
        cells = (
            f"{float(found[solver, p]['layer_error']):.4f}, {100 * float(found[solver, p]['mask_share']):.1f} %"
            for p in MASK_PATTERNS
        )
        lines.append((solver, *cells))
    return table(("", *(f"`{pattern}`: error, time in masks" for pattern in MASK_PATTERNS)), lines)


def training_step() -> str:
    """How much faster a whole training step is, and its parts."""
    rows = [row for row in read("training_step.csv") if row["name"] != "torch fp32"]
    parts = ("forward", "backward", "adamw")
    lines = [
        (shown(row["name"]), row["batch"], f"**{float(row['speedup']):.2f}**")
        + tuple(f"{float(row[f'{part}_speedup']):.2f}" for part in parts)
        for row in rows
    ]
    return table(("", "batch", "step", "forward", "backward", "AdamW"), lines)


PAGES = {
    README: (("linear", kernels), ("bert", bert), ("decode", decode)),
    ROOT / "docs" / "masks.md": (("masks", masks), ("alps_masks", alps_masks)),
    ROOT / "docs" / "sparsifiers.md": (("perplexity", perplexity),),
    ROOT / "docs" / "packed_training.md": (("training_step", training_step),),
}


def page(path: Path) -> str:
    """A page with its tables as the records are now."""
    text = path.read_text(encoding="utf-8")
    for name, made in PAGES[path]:
        begin, end = f"<!-- begin: {name}.csv, by scripts/make_readme_tables.py -->", f"<!-- end: {name}.csv -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{made()}\n\n{end}{rest.split(end)[1]}"
    return text


def main() -> int:
    """Write the pages, or compare them."""
    wanted = {path: page(path) for path in PAGES}
    if "--check" in sys.argv[1:]:
        return int(any(path.read_text(encoding="utf-8") != text for path, text in wanted.items()))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
