"""A whole training step of BERT-base's geometry, dense and with packed weights: forward, backward, AdamW.

    python -m benchmarks training_step [--quick]

transformers' `BertModel` with random weights, all 72 linears of the blocks under one pattern, and a head of one linear;
the vocabulary is cut to 1000 words, so that the optimiser's share is that of the blocks. Sequence 128, batch 1 and 8,
one thread, no dropout. Packed weights train by `train_packed_`: forward and dx run on the sparse kernels, dW at kept
places only, and fused AdamW moves the kept values only. `2:4t` and `1:4t` are sparse along both axes; `2:4tx4` and
`1:4tx4` are so by blocks of 4 x 4. Candidates take turns in one run; thread CPU time, medians, parts of the step beside
the whole. Speed only: quality stands in the tables of perplexity and of sparse training.

`--quick` takes 2 of the 12 layers: ratios come close, times do not.
"""

import argparse
import copy
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.bench_bert import bert, linears
from benchmarks.record import RESULTS, where, write_rows
from torch import Tensor, nn

from sparsewright.core import Plan
from sparsewright.hardware import keep_freed_memory, pack_
from sparsewright.models import sparsify_
from sparsewright.nn import train_packed_

LENGTH = 128
BATCHES = (1, 8)
DENSE = "torch fp32"
PATTERNS = ("2:4t", "1:4t", "2:4tx4", "1:4tx4", "2:4x4", "1:4x4", "10%")
GOALS = {"2:4t": 1.15, "1:4t": 1.5}
PARTS = ("forward", "backward", "adamw")


class Trained(nn.Module):
    """The encoder and a head that gives one number."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(768, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Loss against zero."""
        states = self.encoder(input_ids=ids).last_hidden_state
        loss: Tensor = self.head(states[:, 0]).square().mean()
        return loss


@dataclass(frozen=True)
class Candidate:
    """A model and the optimiser over its parameters."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, ids: Tensor) -> tuple[float, ...]:
        """Thread CPU seconds of each part."""
        start = time.thread_time()
        loss = self.model(ids)
        forward = time.thread_time()
        loss.backward()
        backward = time.thread_time()
        self.optimizer.step()
        end = time.thread_time()
        self.optimizer.zero_grad()
        return forward - start, backward - forward, end - backward


def main() -> None:
    """Time, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "training_step.csv")
    parser.add_argument("--quick", action="store_true", help="a sixth of the model: a look, not a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    dense = Trained(bert(2 if arguments.quick else 12))
    candidates = {DENSE: candidate(dense), **{pattern: candidate(packed(dense, pattern)) for pattern in PATTERNS}}
    rows = [row for batch in BATCHES for row in timed(candidates, batch, rounds=5 if batch > 1 else 9)]
    if arguments.quick:
        print("quick look at 2 of 12 layers, table not written")
    else:
        write_rows(arguments.out, rows)


def packed(dense: nn.Module, pattern: str) -> nn.Module:
    """A copy with one pattern in every linear of the blocks, packed and trainable."""
    model = copy.deepcopy(dense)
    names = [name for name in linears(model) if name != "head"]
    plan = Plan.uniform(names, pattern)
    sparsify_(model, plan, method="magnitude")
    pack_(model, plan=plan, force=True)
    train_packed_(model)
    return model


def candidate(model: nn.Module) -> Candidate:
    """With fused AdamW, without dropout: it would cost both the same."""
    model.eval()
    return Candidate(model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))


def timed(candidates: dict[str, Candidate], batch: int, rounds: int) -> list[dict[str, Any]]:
    """One interleaved run at one batch size."""
    ids = torch.randint(0, 1000, (batch, LENGTH), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in candidates}
    for each in candidates.values():
        each.step(ids)  # moments, operands and their transposes are made once
    for _ in range(rounds):
        for name, each in candidates.items():
            seconds[name].append(each.step(ids))
    whole = {name: statistics.median(map(sum, steps)) for name, steps in seconds.items()}
    rows = []
    for name, steps in seconds.items():
        parts = {part: statistics.median(step[place] for step in steps) for place, part in enumerate(PARTS)}
        over = {part: statistics.median(step[place] for step in seconds[DENSE]) for place, part in enumerate(PARTS)}
        low, _, high = statistics.quantiles(map(sum, steps), n=4)
        rows.append(
            {
                "name": name,
                "batch": batch,
                "length": LENGTH,
                "step_s": f"{whole[name]:.4f}",
                "step_s_q1": f"{low:.4f}",
                "step_s_q3": f"{high:.4f}",
                "speedup": f"{whole[DENSE] / whole[name]:.3f}",
                "goal": GOALS.get(name, ""),
                **{f"{part}_speedup": f"{over[part] / parts[part]:.3f}" for part in PARTS},
                "rounds": rounds,
                **where(),
            }
        )
        row = rows[-1]
        print(
            f"batch {batch}  {name:12s} {row['step_s']} s  {row['speedup']}x (goal {row['goal'] or '-'})  "
            + "  ".join(f"{part} {row[f'{part}_speedup']}x" for part in PARTS),
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
