"""Small models and a good bundle."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bundle_models import TwoLayers, pack_layer

from sparsewright.bundle import save


@pytest.fixture
def make_model() -> Callable[..., TwoLayers]:
    """A small model with reproducible weights, its linears packed as asked."""

    def make(
        first: str | None = "2:4x4", second: str | None = "4x1@50%", width: int = 64, tied: bool = True
    ) -> TwoLayers:
        torch.manual_seed(0)
        model = TwoLayers(width, tied).eval()
        if first:
            pack_layer(model.first, first)
        if second:
            pack_layer(model.second, second, torch.float16)
        return model

    return make


@pytest.fixture
def bundle(tmp_path: Path, make_model: Callable[..., TwoLayers]) -> Path:
    """A good bundle of the small model."""
    path = tmp_path / "model.safetensors"
    save(make_model(), path, dense_dtype="fp16")
    return path
