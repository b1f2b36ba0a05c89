"""What each mask schedule is worth: accuracy after the same fine-tuning, for four patterns, beside the dense model.

    python -m benchmarks sparse_training [--steps 80] [--seeds 3] [--processes 1] [--quick] [--out FILE]

A small vision transformer (4 blocks of width 64) that was trained on MNIST, made sparse in all linears of its blocks
and fine-tuned on the training images with AdamW and a cosine; accuracy on 1,500 test images. Every schedule gets the
same steps and, for the same seed, the same batches:

- `fixed`: the largest of the trained weights from the start, and nothing moves.
- `one_shot`: dense for a third of the steps, then pruned once.
- the others as `sparse_training_` has them, masks moving every 5 steps (`sr_ste`: every one).

Rows: mean and standard deviation of the accuracy over the seeds, and of the difference to the dense model that was
fine-tuned with the same seed. Accuracy is a fraction. The data are not part of this repository: SPARSEWRIGHT_ASSETS
names the folder with `vit/`. Without it nothing is measured.
"""

import argparse
import functools
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.record import RESULTS, where, write_rows
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.training import sparse_training_

PATTERNS = ("2:4", "2:4t", "1:4t", "10%")
SCHEDULES = ("fixed", "one_shot", "gradual", "periodic", "sr_ste", "set", "rigl")
BATCH, RATE, EVERY = 32, 1e-3, 5
LAYERS = r"re:blocks\..*"


class Block(nn.Module):
    """Attention of 4 heads and a feed-forward part, both behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)
        self.fc1, self.fc2 = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """28 x 28 pixels in 16 patches, answered by the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, 64, 7, 7)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 64)), nn.Parameter(torch.zeros(1, 17, 64))
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def main() -> None:
    """Train everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "sparse_training.csv")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and one seed")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("SPARSEWRIGHT_ASSETS", Path(__file__).parents[2] / "shared" / "assets")) / "vit"
    if not folder.is_dir():
        print(f"{folder} is not there, so nothing was measured: set SPARSEWRIGHT_ASSETS to the folder that holds vit/.")
        return
    steps = arguments.steps // 10 if arguments.quick else arguments.steps
    seeds = range(1 if arguments.quick else arguments.seeds)
    names = [("dense", "-"), *((pattern, schedule) for pattern in PATTERNS for schedule in SCHEDULES)]
    calls = [(folder, seed, steps, *name) for name in names for seed in seeds]
    # Accuracy is no timing: processes side by side change nothing in it.
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    dense: list[float] = []
    with ProcessPoolExecutor(arguments.processes, context) as pool:
        found = pool.map(accuracy, *zip(*calls, strict=True))
        for name in names:
            values = [next(found) for _ in seeds]
            dense = dense or values
            rows.append(row(*name, values, dense, steps))
    write_rows(arguments.out, rows)


@functools.cache
def images(path: Path) -> tuple[Tensor, Tensor]:
    """Pixels `(count, 1, 28, 28)` as the transformer was trained on them, and labels."""
    with np.load(path) as file:
        pixels = (torch.tensor(file["images"]).float().unsqueeze(1) / 255 - 0.1307) / 0.3081
        return pixels, torch.tensor(file["labels"]).long()


def accuracy(folder: Path, seed: int, steps: int, pattern: str, schedule: str) -> float:
    """Share of test images that are told right after one fine-tuning, on one thread."""
    torch.set_num_threads(1)
    train, test = images(folder / "mnist_train.npz"), images(folder / "mnist_test_dev.npz")
    model = Transformer()
    model.load_state_dict(load_file(folder / "vit_mnist.safetensors"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    masks = None
    if pattern != "dense":
        rules = {LAYERS: pattern}
        if schedule == "fixed":
            sw.sparsify_(model, rules)
        options: dict[str, Any] = {"begin": steps // 3} if schedule == "one_shot" else {}
        if schedule in ("gradual", "periodic", "set", "rigl"):
            options["every"] = EVERY
        masks = sparse_training_(model, optimizer, rules, schedule=schedule, total=steps, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(train[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][chosen]), train[1][chosen]).backward()
        optimizer.step()
        falling.step()
    if masks is not None:
        masks.finish()
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).float().mean())


def row(pattern: str, schedule: str, found: list[float], dense: list[float], steps: int) -> dict[str, Any]:
    """One line of the table."""
    lost = [ours - theirs for ours, theirs in zip(found, dense, strict=True)]
    density = 1.0 if pattern == "dense" else sw.parse_pattern(pattern).density
    print(f"{pattern:6s} {schedule:9s} {statistics.mean(found):.4f} ({statistics.mean(lost):+.4f})", flush=True)
    return {
        "pattern": pattern,
        "schedule": schedule,
        "density": density,
        "accuracy": f"{statistics.mean(found):.4f}",
        "accuracy_sd": f"{spread(found):.4f}",
        "difference": f"{statistics.mean(lost):+.4f}",
        "difference_sd": f"{spread(lost):.4f}",
        "seeds": len(found),
        "steps": steps,
        **where(),
    }


def spread(values: list[float]) -> float:
    """Standard deviation; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
