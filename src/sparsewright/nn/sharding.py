"""Packed parameters beside sharding: they are never cut, and the error of whoever tries says how to keep them out."""

from typing import Any

import torch
from torch import nn

from ..core import KernelError
from .sparse_tensor import OPERATORS, SparseTensor

aten = torch.ops.aten


def packed_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Every packed parameter of a model: what `fully_shard(..., ignored_params=...)` must leave alone."""
    return {parameter for parameter in model.parameters() if isinstance(parameter, SparseTensor)}


def _refuse(func: Any, *args: Any, **kwargs: Any) -> Any:
    raise KernelError(
        f"Packed parameters are not sharded, every process holds them whole, but {func} would cut one. "
        "Keep them out: fully_shard(model, ignored_params=sparsewright.nn.packed_parameters(model)); "
        "or shard and train the masked model, and pack it afterwards."
    )


for _cut in (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unsafe_split.Tensor,
    aten.as_strided.default,
):
    OPERATORS[_cut] = _refuse
