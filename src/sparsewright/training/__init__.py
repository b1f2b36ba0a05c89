"""Floor 8: give back by training what sparsity took."""

from .distributed import KeptGradients, data_parallel, kept_gradients_hook
from .keep_masks import KeptMasks, keep_masks_
from .losses import AbstractDistillation, Answer, distillations
from .masked_weights import MaskedWeight, masked_weights
from .reconstruct import LayerFit, reconstruct
from .recover import Recovery, recover
from .traffic import GradientTraffic

__all__ = [
    "AbstractDistillation",
    "Answer",
    "GradientTraffic",
    "KeptGradients",
    "KeptMasks",
    "LayerFit",
    "MaskedWeight",
    "Recovery",
    "data_parallel",
    "distillations",
    "keep_masks_",
    "kept_gradients_hook",
    "masked_weights",
    "reconstruct",
    "recover",
]
