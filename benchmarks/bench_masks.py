"""Transposable mask solvers, one thread: million weights per second, and how far below the best kept sum they stay.

Writes `results/masks.csv`. Scores are 1024 x 1024 float32 (512 x 512 for solvers in torch); times are thread CPU time,
the median of 7 (one run for solvers that take seconds). The native solver is timed with and without its certificate, on
the best instruction set and on AVX2; TSENOR runs 300 iterations at the best of three temperatures.

    python benchmarks/bench_masks.py [--quick]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.record import RESULTS, where, write_rows
from torch import Tensor

from sparsewright._native import instruction_set, instruction_sets
from sparsewright.core import Transposable, parse_pattern
from sparsewright.solvers import solve_mask, solvers
from sparsewright.solvers.transposable_torch import solve_tiles_in_torch
from sparsewright.solvers.tsenor import Tsenor

PATTERNS = ("2:4t", "4:8t", "8:16t", "16:32t")
MORE_PATTERNS = ("1:4t", "2:8t", "4:16t", "8:32t")
SIZE, SMALL_SIZE = 1024, 512
TEMPERATURES = (50.0, 100.0, 200.0)
KINDS = ("gauss", "student t", "low rank x scales", "bfloat16", "70 % zeros", "8 levels")


def scores_of(kind: str, size: int) -> Tensor:
    """Scores `(size, size)` of one distribution."""
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(size, size, generator=generator)
    uniform = torch.rand(size, size, generator=generator)
    match kind:
        case "student t":
            # Two degrees of freedom.
            return (gauss / (-uniform.clamp_min(1e-9).log()).sqrt()).abs()
        case "low rank x scales":
            left, right = (torch.randn(size, 4, generator=generator) for _ in range(2))
            rows, columns = (torch.randn(size, generator=generator).exp() for _ in range(2))
            return ((left @ right.T + 0.3 * gauss) * rows[:, None] * columns).abs()
        case "bfloat16":
            return gauss.abs().bfloat16()
        case "70 % zeros":
            return gauss.abs() * (uniform > 0.7)
        case "8 levels":
            return (8 * uniform).floor()
    return gauss.abs()


def rate(scores: Tensor, call: Callable[[], object], rounds: int = 7) -> float:
    """Million weights per second of thread CPU time, median."""
    if rounds > 1:
        call()
    taken = []
    for _ in range(rounds):
        started = time.thread_time()
        call()
        taken.append(time.thread_time() - started)
    return scores.numel() / statistics.median(taken) / 1e6


def native_rates(quick: bool) -> list[dict[str, object]]:
    """The native solver on this process's instruction set."""
    rows: list[dict[str, object]] = []
    for text in PATTERNS if quick else (*PATTERNS, *MORE_PATTERNS):
        for kind in KINDS if text in PATTERNS else KINDS[:1]:
            scores = scores_of(kind, SIZE)
            for count in ("exactly", "at_most"):
                proven = rate(scores, partial(solve_mask, scores, text, count, certificate=True))
                plain = rate(scores, partial(solve_mask, scores, text, count))
                found = solve_mask(scores, text, count, certificate=True)
                rows.append(
                    {
                        "solver": "transposable",
                        "pattern": text,
                        "scores": kind,
                        "count": count,
                        "instruction_set": instruction_set(),
                        "certified_mw_per_s": round(proven, 2),
                        "mw_per_s": round(plain, 2),
                        "error_percent": 100 * float(found.gap.sum()) / found.kept,
                        "gap": float(found.gap.max()),
                    }
                )
                print(f"{text:7} {kind:18} {count:8} {proven:8.1f} certified, {plain:8.1f} M weights/s", flush=True)
    scores = scores_of("gauss", SIZE)[:, :16].repeat(4, 1).contiguous()
    slab = rate(scores, lambda: solve_mask(scores, "8:16t"), 101)
    milliseconds = scores.numel() / slab / 1e3
    print(f"8:16t 4096 x 16 slab: {milliseconds:.3f} ms a call", flush=True)
    rows.append(
        {
            "solver": "transposable",
            "pattern": "8:16t",
            "scores": "gauss, 4096 x 16 slab",
            "count": "exactly",
            "instruction_set": instruction_set(),
            "mw_per_s": round(slab, 2),
            "ms_per_call": round(milliseconds, 4),
        }
    )
    return rows


def lost(scores: Tensor, mask: Tensor, best: float) -> float:
    """Percent of the best kept sum that a mask does not keep."""
    return 100 * (1 - float(scores[mask].double().sum()) / best)


def in_torch(scores: Tensor, rule: Transposable) -> Tensor:
    """The exact solver for devices without native code."""
    return solve_tiles_in_torch(scores, (rule.m, rule.m), (rule.n, rule.n), "exactly", "error").mask


def other_rates(quick: bool) -> list[dict[str, object]]:
    """Solvers in torch, and what they lose against the best mask of exactly n."""
    rows: list[dict[str, object]] = []
    for text in PATTERNS[1:3] if quick else PATTERNS:
        rule = parse_pattern(text)
        assert isinstance(rule, Transposable)
        for kind in ("gauss",) if quick else ("gauss", "student t", "low rank x scales"):
            scores = scores_of(kind, SMALL_SIZE)
            best = solve_mask(scores, text, certificate=True).kept

            temperatures = TEMPERATURES[1:2] if quick else TEMPERATURES
            tsenors = {tau: Tsenor(tau=tau) for tau in temperatures}
            errors = {tau: lost(scores, solver.solve(scores, rule), best) for tau, solver in tsenors.items()}
            tau = min(errors, key=lambda each: errors[each])
            calls: dict[str, Callable[[], Tensor]] = {
                "transposable in torch": partial(in_torch, scores, rule),
                "two_approximation": partial(solvers.get("two_approximation").solve, scores, rule),
                "row_then_column": partial(solvers.get("row_then_column").solve, scores, rule),
                f"tsenor, tau {tau:g}, 300 iterations": partial(tsenors[tau].solve, scores, rule),
            }
            for name, call in calls.items():
                speed = rate(scores, call, 1)
                error = lost(scores, call(), best)
                rows.append(
                    {
                        "solver": name,
                        "pattern": text,
                        "scores": kind,
                        "count": "exactly",
                        "mw_per_s": round(speed, 4),
                        "error_percent": round(error, 4),
                    }
                )
                print(f"{text:7} {kind:18} {name:36} {speed:8.3f} M weights/s, {error:.3f} % lost", flush=True)
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer patterns; the record stays as it is")
    parser.add_argument("--native-only", action="store_true", help="print the native solver's rows as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = native_rates(options.quick)
    if options.native_only:
        print(json.dumps(rows))
        return
    if "avx2" in instruction_sets() and instruction_set() != "avx2":
        print("== the same with AVX2", flush=True)
        command = [sys.executable, "-m", "benchmarks.bench_masks", "--native-only", *(["--quick"] * options.quick)]
        environment = {**os.environ, "SPARSEWRIGHT_ISA": "avx2"}
        told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(told[: told.rindex("\n[")], flush=True)
        rows += json.loads(told[told.rindex("\n[") :])
    rows += other_rates(options.quick)
    if options.quick:
        return
    columns = (
        "solver",
        "pattern",
        "scores",
        "count",
        "instruction_set",
        "certified_mw_per_s",
        "mw_per_s",
        "ms_per_call",
        "error_percent",
        "gap",
    )
    place = where()
    del place["instruction_set"]
    write_rows(RESULTS / "masks.csv", [{**{name: row.get(name, "") for name in columns}, **place} for row in rows])


if __name__ == "__main__":
    main()
