"""Floor 8: give back by training what sparsity took."""

from .keep_masks import KeptMasks, keep_masks_
from .losses import AbstractDistillation, Answer, distillations
from .masked_weights import MaskedWeight, masked_weights
from .reconstruct import LayerFit, reconstruct
from .recover import Recovery, recover

__all__ = [
    "AbstractDistillation",
    "Answer",
    "KeptMasks",
    "LayerFit",
    "MaskedWeight",
    "Recovery",
    "distillations",
    "keep_masks_",
    "masked_weights",
    "reconstruct",
    "recover",
]
