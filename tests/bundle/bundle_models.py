"""Models that bundles are made of."""

import torch
from torch import Tensor, nn

from sparsewright.core import parse_pattern
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor, as_parameter
from sparsewright.solvers import solve_mask


class TwoLayers(nn.Module):
    """Two linears, a norm, a buffer and a tied output."""

    def __init__(self, width: int = 64, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.first = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 40, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = hidden + self.second(torch.relu(self.first(hidden)))
        return self.head(self.norm(hidden))


def mask_layer(layer: nn.Linear, pattern: str) -> None:
    """Leave zeros in the weight and the mask beside it, as `sparsify_` does."""
    mask = solve_mask(layer.weight.detach().abs(), pattern)
    with torch.no_grad():
        layer.weight.mul_(mask)
    layer.register_buffer("weight_mask", mask)


def pack_layer(layer: nn.Linear, pattern: str, value_dtype: torch.dtype = torch.float32) -> None:
    """Put a packed weight into the layer."""
    mask = solve_mask(layer.weight.detach().abs(), pattern)
    packed = pack(layer.weight.detach(), mask, pattern=parse_pattern(pattern), value_dtype=value_dtype)
    layer._parameters["weight"] = as_parameter(SparseTensor(packed))
