"""Any `nn.Module`: what the base class finds by structure, and no more."""

from typing import final

from torch import nn

from .base import AbstractAdapter, adapters


@final
@adapters.register("torch")
class TorchAdapter(AbstractAdapter):
    """Serves every model that no other adapter knows."""

    rank = 0

    def handles(self, model: nn.Module) -> bool:
        return True
