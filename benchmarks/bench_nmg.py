"""n:m:g weights against torch's dense float32 linear, one thread, and the energy of their masks beside STen's.

Writes `results/nmg.csv` beside this file: the same mask in the layout `nmg` and, for comparison, in `vector`. Every
time is thread CPU time, calls take turns within one run, and only ratios within a run are compared. STen's own ratios
were measured on another processor (AVX2), against that processor's dense linear.

    python benchmarks/bench_nmg.py [--quick]
"""

import argparse
import csv
import math
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.bench_linear import timed
from benchmarks.record import RESULTS as FOLDER
from benchmarks.record import where as machine
from torch.nn import functional

from sparsewright import kernels
from sparsewright.layouts import pack
from sparsewright.solvers import solve_mask

SHAPES = ((768, 768), (3072, 768), (768, 3072))
TOKENS = (1, 16, 128, 1024)
QUICK_TOKENS = (1, 128)
# Geometric means of STen's kernel over the same shapes: 128 and 1024 tokens, one thread.
STEN_SPEEDUP = {
    "3:6:4": (1.57, 1.41),
    "2:4:16": (1.54, 1.39),
    "1:4:16": (2.16, 1.97),
    "2:8:4": (2.40, 2.17),
    "1:10:16": (4.31, 4.03),
}
# sum|kept| / sum|W| of a 768 x 768 Gaussian after STen's conversion, for these g.
GROUPS = (1, 4, 16, 64)
STEN_ENERGY = {
    "2:4": (0.686, 0.721, 0.735, 0.741),
    "3:6": (0.720, 0.745, 0.755, 0.760),
    "1:4": (0.401, 0.436, 0.450, 0.456),
    "2:8": (0.450, 0.471, 0.481, 0.484),
    "1:10": (0.207, 0.224, 0.232, 0.234),
}
RESULTS = FOLDER / "nmg.csv"


def energies() -> list[dict[str, object]]:
    """One row per pattern: what its best mask keeps, and the CPU seconds it takes."""
    weight = torch.randn(768, 768, generator=torch.Generator().manual_seed(0)).abs()
    rows: list[dict[str, object]] = []
    for nm, theirs in STEN_ENERGY.items():
        for g, sten in zip(GROUPS, theirs):
            text = f"{nm}:{g}"
            solve_mask(weight[:60], text)
            start = time.thread_time()
            mask = solve_mask(weight, text)
            taken = time.thread_time() - start
            energy = float(weight[mask].sum() / weight.sum())
            print(f"{text:8} keeps {energy:.4f} of sum |W|, STen {sten:.3f}; {1e3 * taken:.1f} ms", flush=True)
            rows.append(
                {
                    "what": "energy",
                    "pattern": text,
                    "out": 768,
                    "in": 768,
                    "ours": round(energy, 4),
                    "sten": sten,
                    "solve_ms": round(1e3 * taken, 2),
                }
            )
    return rows


def speeds(shape: tuple[int, int], tokens: int, text: str, rounds: int) -> dict[str, float]:
    """Median seconds of `dense` and of each layout."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    mask = solve_mask(weight.abs(), text)
    x, bias = torch.randn(tokens, shape[1], generator=generator), torch.randn(shape[0], generator=generator)
    masked = torch.where(mask, weight, 0)
    calls = {"dense": lambda: functional.linear(x, masked, bias)}
    for layout in ("nmg", "vector"):
        packed = pack(weight, mask, layout, text)
        assert kernels.which(packed, tokens) != "masked_dense"
        calls[layout] = lambda packed=packed: kernels.linear(x, packed, bias)
    return {name: statistics.median(taken) for name, taken in timed(calls, rounds, slice_s=3e-3).items()}


def main() -> None:
    """Measure, print geometric means, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two batches, under a minute")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    rows = energies()
    for tokens in QUICK_TOKENS if options.quick else TOKENS:
        for text, theirs in STEN_SPEEDUP.items():
            logs: dict[str, list[float]] = {"nmg": [], "vector": []}
            sten = dict(zip((128, 1024), theirs)).get(tokens, "")
            for shape in SHAPES:
                taken = speeds(shape, tokens, text, rounds=5 if options.quick else 9)
                for layout in logs:
                    logs[layout].append(math.log(taken["dense"] / taken[layout]))
                n, m, _ = map(int, text.split(":"))
                rows.append(
                    {
                        "what": "speedup",
                        "pattern": text,
                        "out": shape[0],
                        "in": shape[1],
                        "tokens": tokens,
                        "ours": round(taken["dense"] / taken["nmg"], 3),
                        "in_layout_vector": round(taken["dense"] / taken["vector"], 3),
                        "sten": sten,
                        "dense_us": round(1e6 * taken["dense"], 1),
                        "sparse_us": round(1e6 * taken["nmg"], 1),
                        "useful_gflops": round(2e-9 * n / m * shape[0] * shape[1] * tokens / taken["nmg"], 1),
                    }
                )
            means = ", ".join(f"{layout} {math.exp(statistics.fmean(values)):.2f}" for layout, values in logs.items())
            print(f"{text:8} {tokens:5} tokens, dense / sparse: {means}, STen {sten or '-'}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row)) + list(where)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
