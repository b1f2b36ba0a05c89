"""Floor 8: give back by training what sparsity took."""

from .losses import AbstractDistillation, Answer, distillations
from .masked_weights import MaskedWeight, masked_weights
from .recover import Recovery, recover

__all__ = [
    "AbstractDistillation",
    "Answer",
    "MaskedWeight",
    "Recovery",
    "distillations",
    "masked_weights",
    "recover",
]
