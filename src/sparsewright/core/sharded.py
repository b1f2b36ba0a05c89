"""Weights that fully_shard or tensor parallelism has cut: told from whole ones, refused where whole ones are due."""

import sys

from torch import Tensor, nn

from .errors import ModelError


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, told without loading torch.distributed.tensor where nobody did."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def require_whole(tensor: Tensor, name: str) -> None:
    """Raise ModelError where a weight lies in parts on several processes.

    Args:
        tensor: any; only a DTensor is refused.
        name: of the layer or the tensor, for the message.
    """
    if is_distributed(tensor):
        raise ModelError(
            f"Weights are sparsified, packed, timed, saved and exported whole, but {name or 'the model'} is a sharded "
            "DTensor (fully_shard). Do it before fully_shard, or load torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) into an unsharded model first."
        )


def require_whole_model(model: nn.Module) -> None:
    """Raise ModelError where any weight of the model lies in parts on several processes."""
    for name, parameter in model.named_parameters():
        require_whole(parameter, name)
