"""Small models on disk, and a program that streams one in a process of its own.

python streamed_model.py SOURCE GOAL KILL_AFTER     is killed by SIGKILL after that many layers (0: never)
python streamed_model.py SOURCE GOAL peak           prints the peak of its anonymous memory
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.core import AbstractPattern, LayerStats
from sparsewright.models import ensure_torchvision_imports
from sparsewright.models.tasks import AbstractTask, Quality
from sparsewright.sparsifiers import AbstractSparsifier, Sparsified, sparsifiers

VOCABULARY = 50
# The layer with the largest gram matrix, in the first two blocks: the others are read and written only.
TWO_LARGEST = {r"re:model\.layers\.[01]\.mlp\.down_proj": "2:4"}

# Before any model file of transformers is imported.
ensure_torchvision_imports()


def llama(hidden: int = 32, inner: int = 96, blocks: int = 3, tied: bool = False) -> Any:
    """A random Llama in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def llama_batches(count: int = 3, length: int = 12) -> list[dict[str, Tensor]]:
    """Token batches; the second one is padded."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(count):
        mask = torch.ones(2, length, dtype=torch.long)
        mask[1, length - 3 * (number == 1) :] = 0
        batches.append(
            {"input_ids": torch.randint(0, VOCABULARY, (2, length), generator=generator), "attention_mask": mask}
        )
    return batches


class Block(nn.Module):
    """Two layers read one tensor, a third what they give; gives a tuple, as many blocks do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.left = nn.Linear(width, 2 * width)
        self.right = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor, *, scale: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(hidden)
        return hidden + self.down(torch.relu(self.left(normed)) * self.right(normed)) * scale, scale


class Tower(nn.Module):
    """Blocks between two linear layers; the scale is computed once for all blocks, and handed from block to block."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(24, width)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("steps", torch.linspace(1.0, 2.0, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.last = nn.Linear(width, 24)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, scale = self.first(inputs), self.scale * self.steps
        for block in self.blocks:
            hidden, scale = block(hidden, scale=scale)
        return self.last(hidden)


def tower() -> Tower:
    """A random one."""
    torch.manual_seed(0)
    return Tower().eval()


def tower_batches() -> list[Tensor]:
    """Rows of random numbers."""
    return list(torch.randn(3, 20, 24, generator=torch.Generator().manual_seed(1)))


class Tokens(AbstractTask):
    """A task of random tokens; never scored."""

    metric = "none"

    def calibration(self) -> list[dict[str, Tensor]]:
        return llama_batches()

    def recovery(self) -> list[dict[str, Tensor]]:
        raise NotImplementedError

    def bench_batch(self, batch: int, length: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError

    def _score(self, model: nn.Module, split: str, reference: nn.Module | None) -> Quality:
        raise NotImplementedError


def make_task() -> AbstractTask:
    """Named by recipes."""
    return Tokens()


class DiesOnce(AbstractSparsifier):
    """SparseGPT whose process is killed the first time that the file is not there."""

    needs = "gram"

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        if not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sparsifiers.get("sparsegpt").choose(weight, stats, pattern, layer)


def digests(goal: Path) -> dict[str, str]:
    """Name -> sha256 of every safetensors file."""
    files = [goal] if goal.is_file() else sorted(goal.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def _killed_after(layers: int) -> Any:
    def progress(done: int, total: int, layer: str) -> None:
        if done == layers:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def _peak_of(source: str, goal: str) -> int:
    from transformers.models.llama import modeling_llama  # noqa: F401  counts as an import

    stream, data = sw.sparsify_file, llama_batches(4, 64)
    before = peak = anonymous_bytes()
    running = True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, anonymous_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        stream(source, goal, TWO_LARGEST, method="sparsegpt", data=data)
    finally:
        running = False
        watcher.join()
    return peak - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, made, how = sys.argv[1:]
    if how == "peak":
        print(json.dumps(_peak_of(given, made)))
    else:
        sw.sparsify_file(given, made, "2:4", method="sparsegpt", data=llama_batches(), progress=_killed_after(int(how)))
