"""Gradients of packed layers against torch's dense float32 ones, one thread: what training gains.

Writes `results/backward.csv` beside this file. Rows per layer: `forward`, `dx`, `dW` (the operators alone, against
torch's matrix products) and `step` (the layer through autograd: forward, gradients of x, weight and bias). Rows of the
block: forward, backward and AdamW of a feed-forward block 768 - 3072 - 768. Every figure is thread CPU time; dense and
packed take turns within one run, and only ratios within a run are compared.

    python -m benchmarks backward [--quick]
"""

import argparse
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.bench_linear import timed
from benchmarks.record import RESULTS, where, write_rows
from torch import Tensor, nn
from torch.nn import functional

from sparsewright import kernels
from sparsewright.core import Transposable, parse_pattern
from sparsewright.layouts import PackedWeight, pack
from sparsewright.nn import SparseTensor, as_parameter
from sparsewright.solvers import solve_mask

SHAPES = ((768, 768), (3072, 768), (768, 3072))
TOKENS = (128, 1024)
PATTERNS = ("2:4x4", "1:4x4", "16x1@10%", "2:4", "2:4t", "10%")
BLOCK_PATTERNS = ("2:4x4", "1:4x4", "16x1@10%")
OUTPUT = RESULTS / "backward.csv"

Calls = dict[str, Callable[[], object]]


def packed_weight(weight: Tensor, text: str) -> PackedWeight:
    """The weight packed with its best mask; transposable ones, whose solver is slow, get a cyclic one."""
    pattern = parse_pattern(text)
    if isinstance(pattern, Transposable):
        row, column = torch.arange(weight.shape[0])[:, None], torch.arange(weight.shape[1])
        mask = (row + column) % pattern.m < pattern.n
    else:
        mask = solve_mask(weight.abs(), pattern)
    return pack(weight, mask, "vector", pattern)


def training_step(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward and backward of a layer, with fresh gradients each time."""

    def step() -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).backward(grad)

    return step


def layer_calls(shape: tuple[int, int], tokens: int) -> Calls:
    """What is timed of a layer: `part, dense` and `part, pattern`."""
    out, in_ = shape
    torch.manual_seed(0)
    weight, bias = torch.randn(shape) / in_**0.5, torch.zeros(out)
    x, dy = torch.randn(tokens, in_), torch.randn(tokens, out)
    leaf = x.clone().requires_grad_()
    dense = nn.Linear(in_, out)
    calls: Calls = {
        "forward, dense": lambda: functional.linear(x, weight, bias),
        "dx, dense": lambda: dy @ weight,
        "dW, dense": lambda: dy.T @ x,
        "step, dense": training_step(dense, leaf, dy),
    }
    for text in PATTERNS:
        packed = packed_weight(weight, text)
        layer = nn.Linear(in_, out)
        layer.weight = as_parameter(SparseTensor(packed), trainable=True)
        values, index, pointers = (packed.tensors[name] for name in ("values", "index", "pointers"))
        calls[f"forward, {text}"] = lambda packed=packed: kernels.linear(x, packed, bias)
        calls[f"dx, {text}"] = lambda v=values, i=index, p=pointers: torch.ops.sparsewright.linear_input_grad(
            dy, v, i, p, in_
        )
        calls[f"dW, {text}"] = lambda v=values, i=index, p=pointers: torch.ops.sparsewright.linear_weight_grad(
            dy, x, i, p, v.shape[1]
        )
        calls[f"step, {text}"] = training_step(layer, leaf, dy)
    return calls


def block_calls(tokens: int) -> Calls:
    """Training steps of a feed-forward block with fused AdamW, dense and packed."""
    torch.manual_seed(0)
    x, dy = torch.randn(tokens, 768).requires_grad_(), torch.randn(tokens, 768)
    calls: Calls = {}
    for text in ("dense", *BLOCK_PATTERNS):
        block = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
        if text != "dense":
            for layer in (block[0], block[2]):
                layer.weight = as_parameter(SparseTensor(packed_weight(layer.weight.detach(), text)), trainable=True)
        optimizer = torch.optim.AdamW(block.parameters(), 1e-5, fused=True)
        backward = training_step(block, x, dy)

        def step(backward: Callable[[], None] = backward, optimizer: torch.optim.Optimizer = optimizer) -> None:
            backward()
            optimizer.step()

        calls[f"block with AdamW, {text}"] = step
    return calls


def rows_of(calls: Calls, shape: tuple[int, int], tokens: int, rounds: int) -> list[dict[str, object]]:
    """One row per part and pattern; forward and operators run without autograd, steps with it."""
    with torch.enable_grad():
        taken = timed(calls, rounds, slice_s=3e-3)
    rows = []
    for name, seconds in taken.items():
        part, pattern = name.split(", ")
        if pattern == "dense":
            continue
        dense = statistics.median(taken[f"{part}, dense"])
        low, middle, high = statistics.quantiles(seconds, n=4)
        rows.append(
            {
                "out": shape[0],
                "in": shape[1],
                "tokens": tokens,
                "pattern": pattern,
                "part": part,
                "dense_us": round(1e6 * dense, 1),
                "packed_us": round(1e6 * middle, 1),
                "packed_us_q1": round(1e6 * low, 1),
                "packed_us_q3": round(1e6 * high, 1),
                "speedup": round(dense / middle, 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape, 128 tokens, half a minute")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = where()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rounds = 3 if options.quick else 7
    rows: list[dict[str, object]] = []
    for tokens in TOKENS[:1] if options.quick else TOKENS:
        gains: dict[str, list[float]] = defaultdict(list)
        for shape in SHAPES[:1] if options.quick else SHAPES:
            for row in rows_of(layer_calls(shape, tokens), shape, tokens, rounds):
                rows.append({**row, **about})
                gains[f"{row['pattern']}, {row['part']}"].append(math.log(float(str(row["speedup"]))))
        for text in PATTERNS:
            means = (math.exp(statistics.fmean(gains[f"{text}, {part}"])) for part in ("forward", "dx", "dW", "step"))
            forward, dx, dw, step = means
            print(
                f"{tokens} tokens, {text}: dense / packed, geometric mean: forward {forward:.2f}, dx {dx:.2f}, "
                f"dW {dw:.2f}, step {step:.2f}",
                flush=True,
            )
        for row in rows_of(block_calls(tokens), (3072, 768), tokens, rounds):
            rows.append({**row, **about})
            print(f"{tokens} tokens, {row['part']}, {row['pattern']}: dense / packed {row['speedup']}", flush=True)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
