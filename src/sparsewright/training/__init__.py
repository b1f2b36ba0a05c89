"""Floor 8: give back by training what sparsity took."""

from .callbacks import lightning_callback, trainer_callback
from .distributed import KeptGradients, data_parallel, kept_gradients_hook
from .keep_masks import KeptMasks, keep_masks_
from .lora import add_lora_, load_lora_, lora_state_dict, merge_lora_
from .losses import AbstractDistillation, Answer, distillations
from .masked_weights import MaskedWeight, masked_weights
from .peft_lora import PeftMerge, merge_peft_lora
from .reconstruct import LayerFit, reconstruct
from .recover import Recovery, recover
from .schedules import (
    AbstractSchedule,
    Fixed,
    Gradual,
    MaskChange,
    OneShot,
    Periodic,
    RigL,
    SparseEvolutionary,
    SparseRefined,
    Timing,
    exchange,
    schedules,
)
from .sparse_training import SparseTraining, sparse_training_
from .traffic import GradientTraffic

__all__ = [
    "AbstractDistillation",
    "AbstractSchedule",
    "Answer",
    "Fixed",
    "GradientTraffic",
    "Gradual",
    "KeptGradients",
    "KeptMasks",
    "LayerFit",
    "MaskChange",
    "MaskedWeight",
    "OneShot",
    "PeftMerge",
    "Periodic",
    "Recovery",
    "RigL",
    "SparseEvolutionary",
    "SparseRefined",
    "SparseTraining",
    "Timing",
    "add_lora_",
    "data_parallel",
    "distillations",
    "exchange",
    "keep_masks_",
    "kept_gradients_hook",
    "lightning_callback",
    "load_lora_",
    "lora_state_dict",
    "masked_weights",
    "merge_lora_",
    "merge_peft_lora",
    "reconstruct",
    "recover",
    "schedules",
    "sparse_training_",
    "trainer_callback",
]
