"""What sparsity costs a real language model: perplexity by pattern and sparsifier, and mask solvers inside ALPS.

    python -m benchmarks perplexity [--quick]

Stories260K on TinyStories (see `language_model.py`; both are development data). All linears of the blocks are pruned by
one pattern, calibrated on 64 stories drawn by a seed from the first half; perplexity is that of 400 stories of the
second half. Three seeds, of which magnitude needs none. Where a width is no multiple of M (172 is not of 8, 16 and 32),
`edge="at_most"` and the density that came out stands in the row. No recovery: one shot.

The second table runs ALPS with the exact mask solver, TSENOR at three temperatures, the greedy two-approximation and
rows-then-columns: mean layer error, and the share of ALPS's time that masks take.
"""

import argparse
import copy
import csv
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.language_model import ASSETS, batches, perplexity, stories, stories_model
from benchmarks.record import RESULTS, where, write_rows
from torch import Tensor, nn

from sparsewright.core import AbstractPattern, LayerStats
from sparsewright.models import SparsifyResult, sparsify_
from sparsewright.solvers import AbstractMaskSolver, Count, solvers
from sparsewright.solvers.tsenor import Tsenor
from sparsewright.sparsifiers import reconstruction_error
from sparsewright.sparsifiers.alps import ALPS

PATTERNS = ("2:4", "2:4t", "4:8t", "8:16t", "16:32t", "50%", "2:4x4", "2:4tx4")
METHODS = ("magnitude", "wanda", "sparsegpt", "alps")
SEEDS = (0, 1, 2)
CALIBRATION, TEST = 64, 400
TRANSPOSABLE = ("2:4t", "4:8t", "8:16t", "16:32t")
TEMPERATURES = (50.0, 100.0, 200.0)
# Of one more layer, so large that the time of a call does not count.
SIZE = 768


def main() -> None:
    """Measure, write both tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "perplexity.csv")
    parser.add_argument("--solvers-out", type=Path, default=RESULTS / "alps_masks.csv")
    parser.add_argument("--only", nargs="+", choices=PATTERNS, help="these patterns; rows of others stay as they are")
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the text: a look, not a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not ASSETS.is_dir():
        print(f"No language model in {ASSETS}: set SPARSEWRIGHT_ASSETS to the folder of development data.")
        return
    texts, dense = stories(), stories_model()
    half = len(texts) // 2
    test = batches(texts[half : half + (TEST // 4 if arguments.quick else TEST)])
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    rows = perplexities(dense, texts[:half], test, seeds, arguments.only or PATTERNS)
    if arguments.quick:
        inside_alps(dense, batches(drawn(texts[:half], 0)))
        print("quick look, tables not written")
    elif arguments.only:
        write_rows(arguments.out, merged(arguments.out, rows))
    else:
        write_rows(arguments.out, rows)
        write_rows(arguments.solvers_out, inside_alps(dense, batches(drawn(texts[:half], 0))))


def merged(path: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table with these in the place of theirs, in the order of the patterns."""
    with path.open(encoding="utf-8", newline="") as held:
        found = {(row["pattern"], row["method"]): row for row in csv.DictReader(held)}
    found |= {(row["pattern"], row["method"]): row for row in rows}
    return sorted(found.values(), key=lambda row: ("dense", *PATTERNS).index(row["pattern"]))


def drawn(texts: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Calibration stories."""
    return random.Random(seed).sample(list(texts), CALIBRATION)


def pruned(dense: nn.Module, pattern: str, method: str, data: Any) -> tuple[nn.Module, SparsifyResult]:
    """A pruned copy and what became of its layers."""
    model = copy.deepcopy(dense)
    return model, sparsify_(model, pattern, method=method, data=data, edge="at_most", exclude=["lm_head"])


def perplexities(
    dense: nn.Module,
    texts: Sequence[Tensor],
    test: Sequence[dict[str, Tensor]],
    seeds: Sequence[int],
    patterns: Sequence[str],
) -> list[dict[str, Any]]:
    """One row for the dense model, one for every pattern and method."""
    rows = [_row("dense", "", [perplexity(dense, test)], [1.0], [0.0], 0.0)]
    print(f"dense {rows[0]['perplexity']}", flush=True)
    for pattern in patterns:
        for method in METHODS:
            found, density, errors, seconds = [], [], [], []
            for seed in seeds[:1] if method == "magnitude" else seeds:
                data = None if method == "magnitude" else batches(drawn(texts, seed))
                start = time.thread_time()
                model, result = pruned(dense, pattern, method, data)
                seconds.append(time.thread_time() - start)
                found.append(perplexity(model, test))
                kept = sum(float((module.weight_mask != 0).sum()) for module in masked(model))
                density.append(kept / sum(module.weight.numel() for module in masked(model)))
                errors.append(statistics.fmean(layer.error for layer in result.layers.values()))
            rows.append(_row(pattern, method, found, density, errors, statistics.median(seconds)))
            row = rows[-1]
            print(
                f"{pattern:7s} {method:10s} {row['perplexity']} ± {row['spread']}  density {row['density']}", flush=True
            )
    return rows


def masked(model: nn.Module) -> list[Any]:
    """Modules with a mask."""
    return [module for module in model.modules() if "weight_mask" in module._buffers]


def _row(
    pattern: str, method: str, found: list[float], density: list[float], errors: list[float], seconds: float
) -> dict[str, Any]:
    return {
        "pattern": pattern,
        "method": method,
        "perplexity": f"{statistics.fmean(found):.3f}",
        "spread": f"{statistics.stdev(found):.3f}" if len(found) > 1 else "",
        "seeds": len(found),
        "density": f"{statistics.fmean(density):.4f}",
        "layer_error": f"{statistics.fmean(errors):.4f}" if method not in ("", "magnitude") else "",
        "cpu_s": f"{seconds:.2f}",
        **where(),
    }


@final
@dataclass(frozen=True, eq=False)
class Timed(AbstractMaskSolver):
    """Another solver, and how long it took."""

    solver: AbstractMaskSolver
    seconds: list[float]
    exact = False

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """What the other one says."""
        return self.solver.why_not(pattern)

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """What the other one chooses."""
        start = time.thread_time()
        mask = self.solver.choose(scores, pattern, count)
        self.seconds.append(time.thread_time() - start)
        return mask


def inside_alps(dense: nn.Module, data: Any) -> list[dict[str, Any]]:
    """Layer error and time of ALPS by mask solver; widths that fit only, so that each solver has the same layers."""
    rows = []
    narrow = ["re:.*down_proj", "re:.*gate_proj", "re:.*up_proj", "lm_head"]
    candidates: dict[str, AbstractMaskSolver] = {
        "transposable": solvers.get("transposable"),
        **{f"tsenor, tau {tau:g}": Tsenor(tau=tau) for tau in TEMPERATURES},
        "two_approximation": solvers.get("two_approximation"),
        "row_then_column": solvers.get("row_then_column"),
    }
    for pattern in TRANSPOSABLE:
        for name, solver in candidates.items():
            clock = Timed(solver, [])
            result = sparsify_(copy.deepcopy(dense), pattern, method=ALPS(solver=clock), data=data, exclude=narrow)
            seconds = sum(layer.seconds for layer in result.layers.values())
            rows.append(
                {
                    "pattern": pattern,
                    "solver": name,
                    "layer_error": f"{statistics.fmean(layer.error for layer in result.layers.values()):.5f}",
                    "mask_s": f"{sum(clock.seconds):.4f}",
                    "alps_s": f"{seconds:.3f}",
                    "mask_share": f"{sum(clock.seconds) / seconds:.4f}",
                    **where(),
                }
            )
            _tell(rows[-1])
        rows.append(_large_layer(pattern))
        _tell(rows[-1])
    return rows


def _tell(row: dict[str, Any]) -> None:
    print(f"{row['pattern']:7s} {row['solver']:24s} error {row['layer_error']}  masks {row['mask_share']}", flush=True)


def _large_layer(pattern: str) -> dict[str, Any]:
    """The exact solver on one random layer of BERT-base's size, whose inputs are correlated."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator)
    inputs = torch.randn(4 * SIZE, SIZE // 4, generator=generator) @ torch.randn(SIZE // 4, SIZE, generator=generator)
    inputs += torch.randn(4 * SIZE, SIZE, generator=generator)
    stats = LayerStats(
        len(inputs), inputs.mean(0).double(), inputs.square().sum(0).double(), (inputs.T @ inputs).double()
    )
    clock = Timed(solvers.get("transposable"), [])
    start = time.thread_time()
    found = ALPS(solver=clock).sparsify(weight, stats, pattern)
    seconds = time.thread_time() - start
    return {
        "pattern": pattern,
        "solver": f"transposable, {SIZE} x {SIZE}",
        "layer_error": f"{reconstruction_error(weight, found.weight, stats):.5f}",
        "mask_s": f"{sum(clock.seconds):.4f}",
        "alps_s": f"{seconds:.3f}",
        "mask_share": f"{sum(clock.seconds) / seconds:.4f}",
        **where(),
    }


if __name__ == "__main__":
    main()
