"""A whole encoder of BERT-base's geometry at fixed uniform plans, beside what else a user could run.

    python -m benchmarks bert [--quick]

transformers' `BertModel` with random weights: 12 layers, hidden size 768, 12 heads, feed-forward size 3072 (the
vocabulary, which only costs a lookup, is cut to 1000 words). Sequence 128, batch 1 and 8, one thread. All 72 linears of
the blocks run under one pattern; attention, norms and activations stay torch's in all of torch's rows. Candidates take
turns in one run; `speedup` is torch fp32 dense time / this time and `against_int8` torch dynamic int8 time / this time,
thread CPU time, medians over paired rounds with a bootstrap 95 % interval. Which weights are kept does not change the
time, so masks are by magnitude; speed only, quality stands in the other tables.

`--quick` takes 2 of the 12 layers and leaves out onnxruntime: ratios come close, times do not.
"""

import argparse
import copy
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.peak import peak_gflops
from benchmarks.record import RESULTS, where, write_rows
from torch import Tensor, nn

from sparsewright.core import Plan, parse_pattern
from sparsewright.hardware import (
    Samples,
    build_rivals,
    dynamic_int8,
    interleave,
    keep_freed_memory,
    pack_,
    run_model,
    speedup,
)
from sparsewright.models import ensure_torchvision_imports, layers, sparsify_

LENGTH = 128
BATCHES = (1, 8)
PATTERNS = ("1:4x4", "10%", "16x1@10%", "16x1@10% int8", "1:4x4 int8")
QUICK_PATTERNS = ("1:4x4", "16x1@10%", "16x1@10% int8")
DENSE, RIVAL = "torch fp32", "torch dynamic int8"
ONNX = ("onnxruntime fp32", "onnxruntime dynamic int8")
# At batch 8: times torch fp32, times torch dynamic int8.
GOALS = {"16x1@10%": (5.0, 3.0)}


def main() -> None:
    """Time, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "bert.csv")
    parser.add_argument("--quick", action="store_true", help="a sixth of the model, fewer rows: a look, not a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    dense = bert(2 if arguments.quick else 12)
    patterns = QUICK_PATTERNS if arguments.quick else PATTERNS
    models: dict[str, nn.Module] = {DENSE: dense, RIVAL: dynamic_int8(dense)}
    models.update({pattern: packed(dense, pattern) for pattern in patterns})
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.quick:
            for rival in build_rivals(dense, batch_of(2), ONNX, folder=folder):
                if rival.model is None:
                    print(f"{rival.name}: {rival.reason}")
                else:
                    models[rival.name] = rival.model
        rows = [row for batch in BATCHES for row in timed(models, dense, batch, arguments.quick)]
    if arguments.quick:
        print("quick look at 2 of 12 layers, table not written")
    else:
        write_rows(arguments.out, rows)


def bert(count: int) -> nn.Module:
    """BERT-base's encoder with random weights and so many of its layers, in evaluation mode."""
    ensure_torchvision_imports()
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=1000, num_hidden_layers=count)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (768, 12, 3072)
    return BertModel(config, add_pooling_layer=False).eval()


def batch_of(items: int) -> dict[str, Tensor]:
    """Random words, nothing padded."""
    ids = torch.randint(0, 1000, (items, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def packed(dense: nn.Module, choice: str) -> nn.Module:
    """A copy with one pattern (and value type) in every linear of the blocks, packed."""
    model = copy.deepcopy(dense)
    text, _, values = choice.partition(" ")
    plan = Plan.uniform(linears(model), text, "int8" if values == "int8" else "fp32")
    sparsify_(model, plan, method="magnitude")
    pack_(model, plan=plan, force=True)
    return model


def linears(model: nn.Module) -> list[str]:
    """Names of the layers that are pruned."""
    return [ref.name for ref in layers(model) if not ref.skipped_reason]


def timed(models: dict[str, nn.Module], dense: nn.Module, batch: int, quick: bool) -> list[dict[str, Any]]:
    """One interleaved run at one batch size."""
    inputs = batch_of(batch)
    calls = {name: (lambda model=model: run_model(model, inputs)) for name, model in models.items()}
    rounds, seconds = ((3, 5), 8.0) if quick else ((15, 40), 240.0)
    samples = interleave(calls, rounds=rounds, seconds=seconds, tolerance=0.0, warm=1)
    weights = sum(ref.module.weight.numel() for ref in layers(dense) if not ref.skipped_reason)
    rows = []
    for name, sample in samples.items():
        rows.append(row_of(name, sample, samples, batch, weights))
        row = rows[-1]
        goals = f"   goals {row['goal']}x, {row['goal_against_int8']}x" if row["goal"] else ""
        interval = f"[{row['speedup_low']}, {row['speedup_high']}]"
        print(
            f"batch {batch}  {name:24s} {row['cpu_s']} s  {row['speedup']}x torch fp32 {interval}  "
            f"{row['against_int8']}x torch int8{goals}",
            flush=True,
        )
    return rows


def row_of(name: str, sample: Samples, samples: dict[str, Samples], batch: int, weights: int) -> dict[str, Any]:
    """One row of the table; `weights` are all of the dense linears."""
    over_dense, over_int8 = speedup(sample, samples[DENSE]), speedup(sample, samples[RIVAL])
    low, high = sample.quartiles()
    density = parse_pattern(name.partition(" ")[0]).density if name in PATTERNS else 1.0
    useful = 2e-9 * density * weights * batch * LENGTH / sample.median
    goal, goal_int8 = GOALS.get(name, ("", "")) if batch == 8 else ("", "")
    return {
        "name": name,
        "batch": batch,
        "length": LENGTH,
        "linear_weights": weights,
        "cpu_s": f"{sample.median:.5f}",
        "cpu_s_q1": f"{low:.5f}",
        "cpu_s_q3": f"{high:.5f}",
        "speedup": f"{over_dense.value:.3f}",
        "speedup_low": f"{over_dense.low:.3f}",
        "speedup_high": f"{over_dense.high:.3f}",
        "goal": goal,
        "against_int8": f"{over_int8.value:.3f}",
        "against_int8_low": f"{over_int8.low:.3f}",
        "against_int8_high": f"{over_int8.high:.3f}",
        "goal_against_int8": goal_int8,
        "useful_gflops": f"{useful:.1f}",
        "peak_gflops": f"{peak_gflops():.1f}",
        "share_of_peak": f"{useful / peak_gflops():.3f}",
        "rounds": len(sample.cpu),
        **where(),
    }


if __name__ == "__main__":
    main()
