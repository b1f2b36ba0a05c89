"""Sparse and int8 linear against torch's dense float32 linear, one thread: what each gains at which batch.

Writes `results/linear.csv` beside this file. Every figure is thread CPU time, so that neighbours on the machine count
as little as they can; dense torch, dense onnxruntime, torch's dynamic int8 and ours take turns within one run, and
only ratios within a run are compared. `share_of_peak` is what a row computes usefully (two operations per kept weight
and token) over the float32 multiply-adds that one core can do at most (`peak.py`); bytes may pass 1.

    python benchmarks/bench_linear.py [--quick]
"""

import argparse
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.onnx_dense import onnx_linear
from benchmarks.peak import peak_gflops, share_of_peak
from benchmarks.record import RESULTS, where, write_rows
from torch import nn
from torch.nn import functional

from sparsewright import kernels
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
    "2:4t",
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
    "2:4x2 int8",
    "1:4x2 int8",
    "2:4 int8",
)
INT8_RIVAL = "torch dynamic int8"
ONNX = "onnxruntime fp32"
RIVALS = (ONNX, INT8_RIVAL)
QUICK_PATTERNS = ("2:4x4", "1:4x4", "2:4x16", "2:4", "dense int8", "4x1@50% int8")
QUICK_TOKENS = (1, 128)
OUTPUT = RESULTS / "linear.csv"


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
    calls[INT8_RIVAL], kernel[INT8_RIVAL] = (lambda: quantised(x)), "torch"
    onnx = onnx_linear(weight, bias)
    calls[ONNX], kernel[ONNX] = (lambda: onnx(x)), "onnxruntime"
    for text in patterns:
        pattern, values = parse_choice(text)
        dense_ones = torch.ones(shape, dtype=torch.bool)
        mask = dense_ones if isinstance(pattern, Dense) else solve_mask(weight.abs(), pattern)
        packed = pack(weight, mask, pattern=pattern, value_dtype=torch.int8 if values == "int8" else torch.float32)
        kernel[text] = kernels.which(packed, tokens)
        calls[text] = lambda packed=packed: kernels.linear(x, packed, bias)
    taken = timed(calls, rounds, slice_s=3e-3)
    dense, dense_onnx = (statistics.median(taken[name]) for name in ("dense", ONNX))
    rows = []
    for text in (*RIVALS, *patterns):
        low, middle, high = statistics.quantiles(taken[text], n=4)
        density = 1.0 if text in RIVALS else parse_choice(text)[0].density
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
                "speedup_over_onnxruntime": round(dense_onnx / middle, 3),
                "useful_gflops": round(2e-9 * density * shape[0] * shape[1] * tokens / middle, 1),
                "share_of_peak": round(share_of_peak(density, *shape, tokens, middle), 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few patterns and batches, under a minute")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    about = where()
    print(", ".join(f"{name} {value}" for name, value in about.items()), f"peak {peak_gflops():.0f} GFLOP/s", sep=", ")
    rows: list[dict[str, object]] = []
    for model, (shapes, batches) in MODELS.items():
        for tokens in batches:
            if options.quick and tokens not in QUICK_TOKENS:
                continue
            patterns = QUICK_PATTERNS if options.quick else PATTERNS
            gains = defaultdict(list)
            for shape in shapes:
                for row in measure(shape, tokens, patterns, rounds=5 if options.quick else 9):
                    rows.append({"model": model, **row, **about})
                    gains[row["pattern"]].append(math.log(float(str(row["speedup"]))))
            means = "  ".join(f"{text} {math.exp(statistics.fmean(logs)):.2f}" for text, logs in gains.items())
            print(
                f"{model}, {tokens} tokens, dense / sparse, geometric mean of {len(shapes)} shapes: {means}", flush=True
            )
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
