"""Sparse linear on a CUDA device against torch's dense linear in one dtype: 2:4 on sparse tensor cores, and Triton.

Writes `results/cuda.csv` beside this file. Times are CUDA events around calls that follow one another, so that a layer
too small to keep the device busy is timed by how fast Python launches it, dense or sparse. Dense and sparse take turns
within one run, and only ratios within a run are compared. float32 is true float32 (no TF32). Without a CUDA device it
says so and measures nothing.

    python benchmarks/bench_cuda.py [--quick]
"""

import argparse
import csv
import datetime
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import sparsewright
from sparsewright import kernels
from sparsewright.layouts import pack
from sparsewright.solvers import solve_mask

SHAPES = {"BERT-base": ((768, 768), (3072, 768), (768, 3072)), "7B": ((4096, 4096), (11008, 4096), (4096, 11008))}
TOKENS = (1, 4, 16, 128, 1024, 8192)
QUICK_TOKENS = (1, 128)
# Pattern, layout; the first one needs 16-bit values.
CHOICES = (
    ("2:4", "semi_structured"),
    ("2:4", "vector"),
    ("2:4x4", "vector"),
    ("1:4x4", "vector"),
    ("2:4x16", "vector"),
    ("1:4x16", "vector"),
    ("1:8x16", "vector"),
    ("16x1@10%", "vector"),
)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
RESULTS = Path(__file__).parent / "results" / "cuda.csv"
ABSENT = "no CUDA device: not measured"

Calls = dict[str, Callable[[], object]]


def timed(calls: Calls, rounds: int, slice_s: float) -> dict[str, list[float]]:
    """Seconds per call, one figure per round; the calls take turns in every round."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):  # compiles, compresses, chooses
            call()
        repeats[name] = max(3, min(1000, round(slice_s / _seconds(call, 3))))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(_seconds(call, repeats[name]))
    return taken


def _seconds(call: Callable[[], object], repeats: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return max(1e-3 * begin.elapsed_time(end) / repeats, 1e-9)


def measure(shape: tuple[int, int], tokens: int, values: str, rounds: int) -> list[dict[str, object]]:
    """One row per pattern for a weight `(out, in)`, a batch and a dtype; results are checked before they are timed."""
    torch.manual_seed(0)
    dtype = DTYPES[values]
    weight = torch.randn(shape) / shape[1] ** 0.5
    bias, x = torch.zeros(shape[0]).to("cuda", dtype), torch.randn(tokens, shape[1]).to("cuda", dtype)
    dense_weight = weight.to("cuda", dtype)
    calls: Calls = {"dense": lambda: functional.linear(x, dense_weight, bias)}
    kernel, density = {}, {}
    for text, layout in CHOICES:
        if layout == "semi_structured" and dtype == torch.float32:
            continue
        packed = pack(weight, solve_mask(weight.abs(), text), layout, text, dtype).to("cuda")
        name = f"{text} {layout}"
        kernel[name], density[name] = kernels.which(packed, tokens), packed.pattern.density
        calls[name] = lambda packed=packed: kernels.linear(x, packed, bias)
        check(calls[name](), functional.linear(x, packed.unpack(), bias), dtype)
    taken = timed(calls, rounds, slice_s=10e-3)
    dense = statistics.median(taken["dense"])
    rows = []
    for name in kernel:
        low, middle, high = statistics.quantiles(taken[name], n=4)
        rows.append(
            {
                "out": shape[0],
                "in": shape[1],
                "tokens": tokens,
                "values": values,
                "pattern": name.split(" ")[0],
                "layout": name.split(" ")[1],
                "kernel": kernel[name],
                "dense_us": round(1e6 * dense, 2),
                "sparse_us": round(1e6 * middle, 2),
                "sparse_us_q1": round(1e6 * low, 2),
                "sparse_us_q3": round(1e6 * high, 2),
                "speedup": round(dense / middle, 3),
                "useful_gflops": round(2e-9 * density[name] * shape[0] * shape[1] * tokens / middle, 1),
            }
        )
    return rows


def check(got: object, truth: Tensor, dtype: torch.dtype) -> None:
    """Green before time: AssertionError where a kernel is wrong."""
    loose = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(got, truth, rtol=loose, atol=loose)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few batches and one set of shapes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(ABSENT)
        return
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("highest")
    import triton

    where = {
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "cuda": torch.version.cuda,
        "cusparselt": torch.backends.cusparselt.version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "sparsewright": getattr(sparsewright, "__version__", "0"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    rows: list[dict[str, object]] = []
    for model, shapes in SHAPES.items():
        if options.quick and model != "7B":
            continue
        for tokens in QUICK_TOKENS if options.quick else TOKENS:
            for values in DTYPES:
                gains = defaultdict(list)
                for shape in shapes:
                    for row in measure(shape, tokens, values, rounds=5 if options.quick else 9):
                        rows.append({"model": model, **row, **where})
                        gains[f"{row['pattern']} {row['kernel']}"].append(math.log(float(str(row["speedup"]))))
                means = "  ".join(f"{text} {math.exp(statistics.fmean(logs)):.2f}" for text, logs in gains.items())
                print(f"{model}, {tokens} tokens, {values}, dense / sparse, geometric mean: {means}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
