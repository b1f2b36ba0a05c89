"""Floor 8: give back by training what sparsity took."""

from .losses import AbstractDistillation, Answer, distillations
from .masked_weights import MaskedWeight, masked_weights
from .reconstruct import LayerFit, reconstruct
from .recover import Recovery, recover

__all__ = [
    "AbstractDistillation",
    "Answer",
    "LayerFit",
    "MaskedWeight",
    "Recovery",
    "distillations",
    "masked_weights",
    "reconstruct",
    "recover",
]
