"""How a model is run without being trained: eval mode for a while, every submodule's own mode restored after it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the block; gradients flow as they would outside."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the block; tensors made in it may be trained on later."""
    with eval_mode(model), torch.no_grad():
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval and inference mode for the block: the fastest, for answers that are only looked at."""
    with eval_mode(model), torch.inference_mode():
        yield
