"""What every function that takes a model asks first."""

from torch import nn

from .errors import ModelError


def require_module(model: object) -> None:
    """Raise ModelError unless `model` is a torch module."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"A model is a torch.nn.Module, got {type(model).__name__}. Load it first: load_model('hf:NAME')."
        )
