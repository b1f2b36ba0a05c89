"""A board whose costs are told, and a small model with calibration data."""

import pytest
import torch
from torch import nn

from sparsewright.hardware import AbstractTarget, Cost, LayerTime, ModelTime


class Board(AbstractTarget):
    """Time in proportion to density; shared patterns lose nothing, plain ones some."""

    about = "a board"

    def __init__(self, ratios=None, refuses=()):
        self.ratios, self.refuses = ratios or {}, refuses

    def layer_cost(self, shape, pattern, tokens, value_dtype="fp32"):
        ratio = self.ratios.get(str(pattern), pattern.density * (1.3 if pattern.group == 1 else 1.0))
        return Cost(0.45 if value_dtype == "int8" else ratio, 1.0, "modelled")

    def can_run(self, pattern, shape):
        return pattern.why_not(shape) or (["the board has no such kernel"] if str(pattern) in self.refuses else [])

    def describe(self):
        return {}


@pytest.fixture
def board():
    return Board


@pytest.fixture
def times():
    layers = {name: LayerTime((64, 64), 64, 1, seconds) for name, seconds in (("a", 4.0), ("b", 2.0), ("c", 2.0))}
    wide = {name: LayerTime((64, 64), 2048, 1, 30 * layer.seconds) for name, layer in layers.items()}
    return {"batch 1": ModelTime(10.0, layers), "batch 32": ModelTime(260.0, wide)}


class Small(nn.Module):
    """Three layers, of which the last matters most."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 32, generator=generator) for _ in range(3)]
