"""A command, a model of one's own and a cache of one's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Command

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def build():
    torch.manual_seed(0)
    return Net()


def broken():
    model = build()
    with torch.no_grad():
        model.blocks[1].up.weight[3, 7] = float("nan")
    return model


def bare():
    return nn.LayerNorm(4)
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""
    return Command(capsys)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with a model in `mine.py` (source `python:mine:build`) and a cache of its own."""
    (tmp_path / "mine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def weights(workplace: Path, command: Command) -> Path:
    """Sparsified weights of that model."""
    done = command("sparsify", "python:mine:build", "--plan", "2:4x4", "--out", workplace / "sparse.safetensors")
    assert done.code == 0, done.err
    return workplace / "sparse.safetensors"


@pytest.fixture
def packed(workplace: Path, command: Command, weights: Path) -> Path:
    """A bundle of that model."""
    done = command("pack", "python:mine:build", weights, "--force", "--out", workplace / "model.safetensors")
    assert done.code == 0, done.err
    return workplace / "model.safetensors"
