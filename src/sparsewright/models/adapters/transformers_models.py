"""Hugging Face transformers: encoders, encoder-decoders and causal language models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import nn

from .base import AbstractAdapter, adapters


@final
@adapters.register("transformers")
class TransformersAdapter(AbstractAdapter):
    """Knows the language-model head, everything outside the base model, and the key-value cache."""

    rank = 10

    def handles(self, model: nn.Module) -> bool:
        # By name, so that a model without transformers never imports it.
        return any(
            cls.__name__ == "PreTrainedModel" and cls.__module__.startswith("transformers")
            for cls in type(model).__mro__
        )

    def heads(self, model: nn.Module) -> dict[str, str]:
        names = {module: name for name, module in model.named_modules()}
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        found = {names[head]: "output head: scores the vocabulary, read at one position"} if head in names else {}
        base: Any = getattr(model, "base_model", model)
        if base is not model and base in names:
            prefix = f"{names[base]}."
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear) and not name.startswith(prefix):
                    found.setdefault(name, "output head")
        return found

    @contextmanager
    def calibrating(self, model: nn.Module) -> Iterator[None]:
        """Without a key-value cache: a block that is run twice would otherwise see its own past."""
        # Stacks of an encoder-decoder carry configurations of their own.
        configs: dict[int, Any] = {id(config): config for config in _configs(model) if config.use_cache}
        for config in configs.values():
            config.use_cache = False
        try:
            yield
        finally:
            for config in configs.values():
                config.use_cache = True


def _configs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is not None:
            yield config
