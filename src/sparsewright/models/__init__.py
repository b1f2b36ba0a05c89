"""Floor 5: which layers a model has and in which order they run, its data, calibration, and `sparsify_`."""

from . import tasks
from .adapters import AbstractAdapter, adapter_of, adapters, blocks, layers
from .adopt import adopt_masks_
from .batch_norm import reestimate_batch_norm_
from .calibrate import calibrate
from .data import Batch, Data, as_batch, batches_of
from .layer_ref import MASK, LayerRef, drop_mask, keep_mask
from .modes import eval_mode, evaluating, quiet
from .sources import Family, LoadedModel, family_of, load_model
from .sparsify import (
    LayerResult,
    PlanLike,
    SparsifyResult,
    methods_of,
    outcome,
    planned_layers,
    relative_error,
    resolve_plan,
    solve_layer,
    sparsify_,
    strip_masks_,
)
from .statistics import layer_statistics
from .vision_ops import ensure_torchvision_imports

__all__ = [
    "MASK",
    "AbstractAdapter",
    "Batch",
    "Data",
    "Family",
    "LayerRef",
    "LayerResult",
    "LoadedModel",
    "PlanLike",
    "SparsifyResult",
    "adapter_of",
    "adapters",
    "adopt_masks_",
    "as_batch",
    "batches_of",
    "blocks",
    "calibrate",
    "drop_mask",
    "eval_mode",
    "evaluating",
    "ensure_torchvision_imports",
    "family_of",
    "keep_mask",
    "layer_statistics",
    "layers",
    "load_model",
    "methods_of",
    "outcome",
    "planned_layers",
    "reestimate_batch_norm_",
    "quiet",
    "relative_error",
    "resolve_plan",
    "solve_layer",
    "sparsify_",
    "strip_masks_",
    "tasks",
]
