"""A small vision transformer for the digits recipe, untrained: the recipe trains it."""

from torch import nn


def build() -> nn.Module:
    """16 tokens of 192, 4 blocks, ten classes; about 1.8 million parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        num_labels=10,
    )
    return ViTForImageClassification(config)
