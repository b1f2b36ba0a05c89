"""timm vision models: the classifier is what the model itself calls so."""

from typing import Any, final

from torch import nn

from .base import AbstractAdapter, adapters


@final
@adapters.register("timm")
class TimmAdapter(AbstractAdapter):
    """Knows the classifier of a timm model; blocks are found by structure (ViT `blocks`, stages of Swin and ResNet)."""

    rank = 10

    def handles(self, model: nn.Module) -> bool:
        return type(model).__module__.startswith("timm.")

    def heads(self, model: nn.Module) -> dict[str, str]:
        classifier: Any = getattr(model, "get_classifier", lambda: None)()
        if not isinstance(classifier, nn.Module):
            return {}
        return {
            name: "output head"
            for name, module in model.named_modules()
            if any(module is part for part in classifier.modules())
        }
