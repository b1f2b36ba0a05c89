"""Where a packed parameter refuses with better advice than to make it dense: being sharded, being written as bytes."""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..core import KernelError
from ..kernels import missing_choice
from .sparse_tensor import FUNCTIONS, OPERATORS, SparseTensor, serve_dense

aten = torch.ops.aten


def packed_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Every packed parameter of a model: what `fully_shard(..., ignored_params=...)` must leave alone."""
    return {parameter for parameter in model.parameters() if isinstance(parameter, SparseTensor)}


def _refuse_cut(func: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise KernelError(
        f"Packed parameters are not sharded, every process holds them whole, but {func} would cut one. "
        "Keep them out: fully_shard(model, ignored_params=sparsewright.nn.packed_parameters(model)); "
        "or shard and train the masked model, and pack it afterwards."
    )


def _view(func: Any, tensor: SparseTensor, *sizes: Any) -> Any:
    # What DistributedDataParallel asks of every parameter that it sends around.
    if missing_choice() == "dense":
        return serve_dense(func, (tensor, *sizes), {})
    raise KernelError(
        f"{func} would lay a packed weight out densely. For DistributedDataParallel, wrap the model with "
        "sparsewright.training.data_parallel(model), which shares kept values only; elsewhere call `.dense()` first."
    )


def _refuse_storage(tensor: SparseTensor) -> NoReturn:
    # What safetensors, and with it `save_pretrained`, asks of every tensor that it writes.
    raise KernelError(
        "A packed weight has no storage of its own that a file could hold. Save the model with sparsewright.save or "
        "torch.save, or call sparsewright.register_transformers(model) before model.save_pretrained."
    )


for _cut in (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unsafe_split.Tensor,
    aten.as_strided.default,
):
    OPERATORS[_cut] = _refuse_cut
OPERATORS[aten.view.default] = _view
FUNCTIONS[Tensor.storage] = _refuse_storage
