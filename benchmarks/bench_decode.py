"""Decoding: one token through a weight of 11008x4096, the feed-forward size of a language model of 7 billion weights.

    python -m benchmarks decode [--quick]

One token is a matter of bytes, so it matters where the weights are. `cold`: half a gigabyte of other memory is read
before every call, as a model's other layers would be. `warm`: the same call has just run, and finds what the caches
hold. Thread CPU time, one thread, bias included; all take turns in every round. `speedup` is torch's dense float32 time
/ this time, `against_int8` torch's dynamic int8 time / this time, both medians of one run in the same state of caches.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.onnx_dense import onnx_linear
from benchmarks.peak import peak_gflops, share_of_peak
from benchmarks.record import RESULTS, where, write_rows
from torch import Tensor, nn
from torch.nn import functional

import sparsewright as sw
from sparsewright import kernels
from sparsewright.hardware import dynamic_int8

SHAPE = (11008, 4096)
CHOICES = ("1:4x16 int8", "1:4x16", "1:4x4 int8", "1:4x4", "2:4x16 int8", "dense int8")
QUICK_CHOICES = ("1:4x16 int8", "1:4x16", "1:4x4")
GOALS = {"1:4x16 int8": (14.0, 4.0)}
RIVAL = "torch dynamic int8"
DENSE = "torch fp32"
_OTHER_BYTES = 512 << 20


def candidates(choices: tuple[str, ...], with_onnx: bool) -> tuple[dict[str, Callable[[], object]], dict[str, object]]:
    """Calls by name, and what each sparse one keeps in memory."""
    torch.manual_seed(0)
    out, in_ = SHAPE
    weight, bias, x = torch.randn(SHAPE) / in_**0.5, torch.zeros(out), torch.randn(1, in_)
    linear = nn.Linear(in_, out)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    quantised = dynamic_int8(linear)
    calls: dict[str, Callable[[], object]] = {
        DENSE: lambda: functional.linear(x, weight, bias),
        RIVAL: lambda: quantised(x),
    }
    held: dict[str, object] = {DENSE: 4 * out * in_, RIVAL: out * in_}
    if with_onnx:
        dense = onnx_linear(weight, bias)
        calls["onnxruntime fp32"], held["onnxruntime fp32"] = (lambda: dense(x)), 4 * out * in_
    for text in choices:
        packed = packed_weight(weight, text)
        expected = functional.linear(x, packed.unpack(), bias)
        torch.testing.assert_close(sw.linear(x, packed, bias), expected, rtol=1e-4, atol=1e-4)
        calls[text] = lambda packed=packed: sw.linear(x, packed, bias)
        held[text] = packed.size_bytes
        print(f"{text}: {kernels.which(packed, 1)}, {packed.size_bytes / 2**20:.1f} MiB", flush=True)
    return calls, held


def packed_weight(weight: Tensor, text: str) -> sw.PackedWeight:
    """The weight in one pattern and value type."""
    pattern, _, values = text.partition(" ")
    dtype = torch.int8 if values == "int8" else torch.float32
    mask = torch.ones_like(weight, dtype=torch.bool) if pattern == "dense" else sw.solve_mask(weight.abs(), pattern)
    return sw.pack(weight, mask, pattern=sw.parse_pattern(pattern), value_dtype=dtype)


def timed(calls: dict[str, Callable[[], object]], rounds: int, cold: bool) -> dict[str, list[float]]:
    """Seconds of thread CPU time, one call per round."""
    other = torch.ones(_OTHER_BYTES // 4) if cold else None
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if other is None:
                call()
            else:
                other.sum()
            start = time.thread_time()
            call()
            taken[name].append(time.thread_time() - start)
    return taken


def main() -> None:
    """Time, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "decode.csv")
    parser.add_argument("--quick", action="store_true", help="fewer patterns and rounds: a look, not a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    calls, held = candidates(QUICK_CHOICES if arguments.quick else CHOICES, with_onnx=not arguments.quick)
    rows: list[dict[str, object]] = []
    for state in ("cold", "warm"):
        taken = timed(calls, 5 if arguments.quick else 21, state == "cold")
        medians = {name: statistics.median(values) for name, values in taken.items()}
        for name, values in taken.items():
            low, middle, high = statistics.quantiles(values, n=4)
            density = 1.0 if name in (DENSE, RIVAL, "onnxruntime fp32") else density_of(name)
            goal, goal_int8 = GOALS.get(name, ("", ""))
            rows.append(
                {
                    "name": name,
                    "caches": state,
                    "out": SHAPE[0],
                    "in": SHAPE[1],
                    "tokens": 1,
                    "cpu_s": f"{middle:.6f}",
                    "cpu_s_q1": f"{low:.6f}",
                    "cpu_s_q3": f"{high:.6f}",
                    "speedup": f"{medians[DENSE] / middle:.2f}",
                    "goal": goal,
                    "against_int8": f"{medians[RIVAL] / middle:.2f}",
                    "goal_against_int8": goal_int8,
                    "weight_bytes": held[name],
                    "gigabytes_per_s": f"{1e-9 * float(str(held[name])) / middle:.1f}",
                    "useful_gflops": f"{2e-9 * density * SHAPE[0] * SHAPE[1] / middle:.1f}",
                    "peak_gflops": f"{peak_gflops():.1f}",
                    "share_of_peak": f"{share_of_peak(density, *SHAPE, 1, middle):.4f}",
                    "rounds": len(values),
                    **where(),
                }
            )
            row = rows[-1]
            goals = f"   goals {goal}x, {goal_int8}x" if goal else ""
            ratios = f"{row['speedup']}x torch fp32  {row['against_int8']}x torch int8"
            print(
                f"{state} {name:20s} {1e3 * middle:8.3f} ms  {ratios}  {row['gigabytes_per_s']} GB/s{goals}", flush=True
            )
    if arguments.quick:
        print("quick look, table not written")
    else:
        write_rows(arguments.out, rows)


def density_of(text: str) -> float:
    """Kept share of a choice."""
    return sw.parse_pattern(text.partition(" ")[0]).density


if __name__ == "__main__":
    main()
