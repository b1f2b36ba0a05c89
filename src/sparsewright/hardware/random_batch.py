"""Random inputs of the right form, read off a model's own configuration: enough to time it, before any data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ModelError


def random_batch(
    model: nn.Module, items: int, length: int = 64, seed: int = 0
) -> dict[str, Tensor] | tuple[Tensor, ...]:
    """One input of `items` items.

    Args:
        model: with a transformers configuration (text or images), a timm configuration, or a first layer that tells
            the width of its input.
        items: batch size.
        length: tokens per item, where the model takes tokens (cut to its longest).
        seed: of the random values.

    Raises:
        ModelError: the model does not tell what it takes.
    """
    generator = torch.Generator().manual_seed(seed)
    config: Any = getattr(model, "config", None)
    if getattr(config, "vocab_size", None):
        longest = getattr(config, "max_position_embeddings", None) or length
        ids = torch.randint(0, int(config.vocab_size), (items, min(length, int(longest))), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "image_size", None):
        return {"pixel_values": _image(items, getattr(config, "num_channels", 3), config.image_size, generator)}
    timm = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    if isinstance(timm, Mapping) and timm.get("input_size"):
        return (torch.randn((items, *timm["input_size"]), generator=generator),)
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)), None)
    if isinstance(first, nn.Linear):
        return (torch.randn((items, first.in_features), generator=generator),)
    if isinstance(first, nn.Embedding):
        return (torch.randint(0, first.num_embeddings, (items, length), generator=generator),)
    raise ModelError(
        f"{type(model).__name__} does not tell what input it takes (no config with vocab_size or image_size). "
        "Pass batch= with one real or random input."
    )


def _image(items: int, channels: int, size: Any, generator: torch.Generator) -> Tensor:
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return torch.randn((items, int(channels), int(height), int(width)), generator=generator)
