"""Sparse and int8 linear against torch's dense float32 linear, one thread: what each gains at which batch.

Writes `results/linear.csv` beside this file. Every figure is thread CPU time, so that neighbours on the machine count
as little as they can; dense, torch's dynamic int8 and ours take turns within one run, and only ratios within a run are
compared.

    python benchmarks/bench_linear.py [--quick]
"""

import argparse
import csv
import datetime
import math
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn import functional

import sparsewright
from sparsewright import kernels
from sparsewright._native import instruction_set
from sparsewright.core import Dense
from sparsewright.hardware import dynamic_int8
from sparsewright.hardware.doctor import parse_choice
from sparsewright.layouts import pack
from sparsewright.solvers import solve_mask

MODELS = {
    "BERT-base": (((768, 768), (3072, 768), (768, 3072)), (1, 16, 64, 128, 1024)),
    "MiniLM": (((384, 384), (1536, 384), (384, 1536)), (1, 16, 64, 128, 2048)),
}
PATTERNS = (
    "2:4x4",
    "1:4x4",
    "1:8x4",
    "2:4x16",
    "1:4x16",
    "1:16x16",
    "4x1@75%",
    "4x1@50%",
    "4x1@25%",
    "4x1@10%",
    "16x1@10%",
    "2:4x2",
    "1:4x2",
    "2:4",
    "1:4",
    "50%",
    "10%",
    "dense int8",
    "4x1@75% int8",
    "2:4x4 int8",
    "4x1@50% int8",
    "1:4x4 int8",
    "4x1@25% int8",
    "16x1@10% int8",
    "2:4 int8",
)
RIVAL = "torch dynamic int8"
QUICK_PATTERNS = ("2:4x4", "1:4x4", "2:4x16", "2:4", "dense int8", "4x1@50% int8")
QUICK_TOKENS = (1, 128)
RESULTS = Path(__file__).parent / "results" / "linear.csv"


def timed(calls: dict[str, Callable[[], object]], rounds: int, slice_s: float) -> dict[str, list[float]]:
    """Seconds of thread CPU time per call, one figure per round; the calls take turns in every round."""
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.thread_time()
        call()
        repeats[name] = max(1, round(slice_s / max(time.thread_time() - start, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(repeats[name]):
                call()
            taken[name].append((time.thread_time() - start) / repeats[name])
    return taken


def measure(shape: tuple[int, int], tokens: int, patterns: tuple[str, ...], rounds: int) -> list[dict[str, object]]:
    """One row per pattern for a weight `(out, in)` and a batch."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(shape) / shape[1] ** 0.5, torch.zeros(shape[0]), torch.randn(tokens, shape[1])
    calls: dict[str, Callable[[], object]] = {"dense": lambda: functional.linear(x, weight, bias)}
    kernel = {}
    linear = nn.Linear(shape[1], shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    quantised = dynamic_int8(linear)
    calls[RIVAL], kernel[RIVAL] = (lambda: quantised(x)), "torch"
    for text in patterns:
        pattern, values = parse_choice(text)
        dense_ones = torch.ones(shape, dtype=torch.bool)
        mask = dense_ones if isinstance(pattern, Dense) else solve_mask(weight.abs(), pattern)
        packed = pack(weight, mask, pattern=pattern, value_dtype=torch.int8 if values == "int8" else torch.float32)
        kernel[text] = kernels.which(packed, tokens)
        calls[text] = lambda packed=packed: kernels.linear(x, packed, bias)
    taken = timed(calls, rounds, slice_s=3e-3)
    dense = statistics.median(taken["dense"])
    rows = []
    for text in (RIVAL, *patterns):
        low, middle, high = statistics.quantiles(taken[text], n=4)
        density = 1.0 if text == RIVAL else parse_choice(text)[0].density
        rows.append(
            {
                "out": shape[0],
                "in": shape[1],
                "tokens": tokens,
                "pattern": text,
                "kernel": kernel[text],
                "dense_us": round(1e6 * dense, 2),
                "sparse_us": round(1e6 * middle, 2),
                "sparse_us_q1": round(1e6 * low, 2),
                "sparse_us_q3": round(1e6 * high, 2),
                "speedup": round(dense / middle, 3),
                "useful_gflops": round(2e-9 * density * shape[0] * shape[1] * tokens / middle, 1),
            }
        )
    return rows


def machine() -> str:
    """Processor model, as the operating system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few patterns and batches, under a minute")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    where = {
        "machine": machine(),
        "instruction_set": instruction_set(),
        "threads": 1,
        "torch": torch.__version__,
        "sparsewright": getattr(sparsewright, "__version__", "0"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    rows: list[dict[str, object]] = []
    for model, (shapes, batches) in MODELS.items():
        for tokens in batches:
            if options.quick and tokens not in QUICK_TOKENS:
                continue
            patterns = QUICK_PATTERNS if options.quick else PATTERNS
            gains = defaultdict(list)
            for shape in shapes:
                for row in measure(shape, tokens, patterns, rounds=5 if options.quick else 9):
                    rows.append({"model": model, **row, **where})
                    gains[row["pattern"]].append(math.log(float(str(row["speedup"]))))
            means = "  ".join(f"{text} {math.exp(statistics.fmean(logs)):.2f}" for text, logs in gains.items())
            print(
                f"{model}, {tokens} tokens, dense / sparse, geometric mean of {len(shapes)} shapes: {means}", flush=True
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
