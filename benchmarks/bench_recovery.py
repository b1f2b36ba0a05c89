"""What a density costs and what it gives, after recovery: Spearman beside speed, both measured, one curve.

    python benchmarks/bench_recovery.py [--steps 250] [--quick] [--fresh] [--out benchmarks/results/recovery.csv]

All-MiniLM-L6-v2, all 36 linears of its blocks under one pattern at 50, 25 and 12.5 % density: SparseGPT on 512
sentences of the train file, then distillation on its sentences (labels unused), then packed with float32 and with int8
values, and scored on the validation pairs. Speed: batch 1 and 32 of 64 tokens, one thread, thread CPU time, candidates
in turns within one run. The data are not part of this repository: SPARSEWRIGHT_ASSETS names the folder with `sts/`.
Scores already in the CSV are kept, so that a stopped run goes on; `--fresh` begins anew, `--quick` only measures speed.
"""

import argparse
import copy
import csv
import datetime
import os
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench_encoder import LENGTH, MODEL
from torch import nn

import sparsewright as sw
from sparsewright.core import write_text
from sparsewright.hardware import (
    dynamic_int8,
    interleave,
    keep_freed_memory,
    pack_,
    random_batch,
    run_model,
    speedup,
    this_machine,
)
from sparsewright.models import blocks, load_model
from sparsewright.models.tasks import SentencePairs, paired_difference
from sparsewright.training import recover

PATTERNS = ("4x1@50%", "4x1@25%", "4x1@12.5%")
VALUES = ("fp32", "int8")
COLUMNS = (
    "name", "density", "values", "spearman", "difference", "standard_error", "steps", "batch_1", "batch_32", "threads",
    "cpu", "isa", "torch", "kernels", "date",
)  # fmt: skip


def main() -> None:
    """Train and score what is missing, then time everything in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "recovery.csv")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--fresh", action="store_true", help="forget the scores that are there")
    parser.add_argument("--quick", action="store_true", help="no training: time, and keep the scores that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    loaded = load_model(MODEL)
    dense = loaded.model.eval()
    scores = {} if arguments.fresh else read_scores(arguments.out)
    if not arguments.quick:
        learn(loaded, scores, arguments.steps, arguments.out)
    write_rows(arguments.out, rows_of(scores, timed(dense, arguments.quick)))


def learn(loaded: Any, scores: dict[str, dict[str, str]], steps: int, out: Path) -> None:
    """Sparsify, recover, pack and score every pattern that has no score yet."""
    assets = Path(os.environ.get("SPARSEWRIGHT_ASSETS", Path(__file__).parents[2] / "shared" / "assets")) / "sts"
    if not assets.is_dir():
        raise SystemExit(f"{assets} is not there: set SPARSEWRIGHT_ASSETS to the folder that holds sts/*.csv.")
    task = SentencePairs(
        tokenizer=loaded.tokenizer,
        validation=assets / "stsb-en-dev.csv",
        train=assets / "stsb-en-train.csv",
        calibration_texts=512,
        recovery_batch=64,
    )
    dense = loaded.model
    truth = task.score(dense, "validation", dense)
    scores["torch fp32"] = {"spearman": f"{truth.value:.4f}"}
    if "torch dynamic int8" not in scores:
        scores["torch dynamic int8"] = score_row(task.score(dynamic_int8(dense), "validation", dense), truth, 0)
    for pattern in PATTERNS:
        if all(f"{pattern} {values}" in scores for values in VALUES):
            continue
        model = load_model(MODEL).model.eval()
        sw.sparsify_(model, pattern, method="sparsegpt", data=task.calibration())
        names = [name for name, _ in blocks(model)]
        before = task.score(model, "validation", dense).value
        recover(model, dense, task.recovery(), steps=steps, blocks=names)
        for values in VALUES:
            packed = copy.deepcopy(model)
            pack_(packed, value_dtype=values, force=True)
            found = task.score(packed, "validation", dense)
            scores[f"{pattern} {values}"] = score_row(found, truth, steps)
            print(f"{pattern} {values}: {before:.4f} one-shot, {found.value:.4f} recovered", flush=True)
        write_rows(out, rows_of(scores, {}))


def score_row(found: Any, truth: Any, steps: int) -> dict[str, str]:
    """Score columns of one row."""
    difference = paired_difference(found, truth)
    return {
        "spearman": f"{found.value:.4f}",
        "difference": f"{difference.mean:+.4f}",
        "standard_error": f"{difference.standard_error:.4f}",
        "steps": str(steps),
    }


def timed(dense: nn.Module, quick: bool) -> dict[str, dict[int, float]]:
    """Name -> batch -> dense seconds / its seconds; which weights are kept does not change the time."""
    candidates = {"torch fp32": dense, "torch dynamic int8": dynamic_int8(dense)}
    for pattern in PATTERNS:
        for values in VALUES:
            model = copy.deepcopy(dense)
            sw.sparsify_(model, pattern, method="magnitude")
            pack_(model, value_dtype=values, force=True)
            candidates[f"{pattern} {values}"] = model
    found: dict[str, dict[int, float]] = {name: {} for name in candidates}
    for batch in (1, 32):
        inputs = random_batch(dense, batch, LENGTH)
        calls = {
            name: (lambda model=model, inputs=inputs: run_model(model, inputs)) for name, model in candidates.items()
        }
        rounds, seconds = ((5, 7), 10.0) if quick else ((15, 60), 60.0)
        samples = interleave(calls, rounds=rounds, seconds=seconds, tolerance=0.0, warm=1)
        for name, sample in samples.items():
            found[name][batch] = speedup(sample, samples["torch fp32"]).value
    return found


def rows_of(scores: dict[str, dict[str, str]], speeds: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """The table."""
    machine = this_machine()
    names = ["torch fp32", "torch dynamic int8", *(f"{pattern} {values}" for pattern in PATTERNS for values in VALUES)]
    rows = []
    for name in names:
        pattern, _, values = name.partition(" ")
        sparse = pattern in PATTERNS
        rows.append(
            {
                "name": name,
                "density": sw.parse_pattern(pattern).density if sparse else 1.0,
                "values": values if sparse else name.rpartition(" ")[2],
                **{key: scores.get(name, {}).get(key, "") for key in COLUMNS[3:7]},
                "batch_1": f"{speeds[name][1]:.3f}" if name in speeds else "",
                "batch_32": f"{speeds[name][32]:.3f}" if name in speeds else "",
                "threads": 1,
                "cpu": machine.cpu,
                "isa": " ".join(machine.isa),
                "torch": machine.torch,
                "kernels": machine.kernels,
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            }
        )
    return rows


def read_scores(path: Path) -> dict[str, dict[str, str]]:
    """Score columns of an earlier run, by name."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["name"]: {key: row[key] for key in COLUMNS[3:7]} for row in csv.DictReader(file) if row["spearman"]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The table as CSV, whole or not at all."""
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    for row in rows:
        print(f"{row['name']:22s} Spearman {row['spearman']:7s} batch 1 {row['batch_1']:6s} batch 32 {row['batch_32']}")


if __name__ == "__main__":
    main()
