"""What a call costs beside its arithmetic: a 64x64 layer, one token, microseconds above `F.linear` on a dense weight.

    python -m benchmarks overhead [--quick]

Eager inference (`no_grad`, and `inference_mode`), one thread, thread CPU time; the calls take turns in every round, and
the median over the rounds counts. `above_us` is the time of the row minus that of `F.linear dense` in the same mode;
for modules, whose call itself costs a few microseconds in torch, `above_module_us` compares with `nn.Linear dense`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.record import RESULTS, where, write_rows
from torch import nn
from torch.nn import functional

import sparsewright as sw
from sparsewright.nn import SparseTensor, as_parameter

SIZE = 64
GOAL_US = 6.0
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def calls() -> dict[str, Callable[[], object]]:
    """Every way to run the layer."""
    torch.manual_seed(0)
    dense = nn.Linear(SIZE, SIZE)
    x, weight, bias = torch.randn(1, SIZE), dense.weight.detach().clone(), dense.bias.detach().clone()
    found: dict[str, Callable[[], object]] = {
        "F.linear dense": lambda: functional.linear(x, weight, bias),
        "nn.Linear dense": lambda: dense(x),
    }
    choices = (("2:4x4", torch.float32), ("1:4", torch.float32), ("10%", torch.float32), ("1:4x4", torch.int8))
    for pattern, dtype in choices:
        packed = sw.pack(weight, sw.solve_mask(weight.abs(), pattern), pattern=pattern, value_dtype=dtype)
        layer = nn.Linear(SIZE, SIZE)
        layer.weight = as_parameter(SparseTensor(packed))
        text = pattern + (" int8" if dtype == torch.int8 else "")
        found[f"sw.linear {text}"] = lambda packed=packed: sw.linear(x, packed, bias)
        found[f"F.linear {text}"] = lambda held=layer.weight: functional.linear(x, held, bias)
        found[f"nn.Linear {text}"] = lambda layer=layer: layer(x)
    return found


def timed(mode: str, rounds: int, repeats: int) -> list[dict[str, object]]:
    """One row per way, in one mode."""
    ways = calls()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with MODES[mode]():
        for call in ways.values():
            call()
        for _ in range(rounds):
            for name, call in ways.items():
                start = time.thread_time()
                for _ in range(repeats):
                    call()
                taken[name].append(1e6 * (time.thread_time() - start) / repeats)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    rows = []
    for name, values in taken.items():
        low, _, high = statistics.quantiles(values, n=4)
        dense = name.endswith("dense")
        module = name.startswith("nn.") and not dense
        rows.append(
            {
                "call": name,
                "mode": mode,
                "out": SIZE,
                "in": SIZE,
                "tokens": 1,
                "us": f"{medians[name]:.2f}",
                "us_q1": f"{low:.2f}",
                "us_q3": f"{high:.2f}",
                "above_us": f"{medians[name] - medians['F.linear dense']:.2f}",
                "above_module_us": f"{medians[name] - medians['nn.Linear dense']:.2f}" if module else "",
                "goal_us": "" if dense else GOAL_US,
                "rounds": rounds,
                "calls_per_round": repeats,
                **where(),
            }
        )
    return rows


def main() -> None:
    """Time, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.csv")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds, repeats = (5, 500) if arguments.quick else (25, 2000)
    rows = [row for mode in MODES for row in timed(mode, rounds, repeats)]
    for row in rows:
        print(f"{row['mode']:15s} {row['call']:22s} {row['us']:>6s} us, {row['above_us']:>6s} above F.linear")
    if arguments.quick:
        print("quick look, table not written")
    else:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
