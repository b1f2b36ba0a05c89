"""Adapters: which layers a model has, which of them may be sparse, and in which order its blocks run."""

from .base import AbstractAdapter, adapter_of, adapters, blocks, layers
from .timm_models import TimmAdapter
from .torch_modules import TorchAdapter
from .transformers_models import TransformersAdapter

__all__ = [
    "AbstractAdapter",
    "TimmAdapter",
    "TorchAdapter",
    "TransformersAdapter",
    "adapter_of",
    "adapters",
    "blocks",
    "layers",
]
