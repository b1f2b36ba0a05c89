"""Callbacks that run a mask schedule inside a trainer: transformers' and Lightning's, both around `SparseTraining`."""

from pathlib import Path
from typing import Any

from torch import nn

from ..core import MissingPackageError
from ..models import PlanLike
from .schedules import AbstractSchedule
from .sparse_training import SparseTraining


def trainer_callback(
    model: nn.Module,
    pattern: PlanLike | None = None,
    *,
    schedule: str | AbstractSchedule,
    resume_from: str | Path | None = None,
    **options: Any,
) -> Any:
    """A `transformers.TrainerCallback` for `Trainer(model, callbacks=[...])`; make it before the Trainer trains.

    Checkpoints get one more file, `sparse_training.safetensors`; a run resumed with the same callback ends with the
    same bits. `total` is the Trainer's number of steps unless it is given.

    Args:
        model: the Trainer's; a buffer `weight_mask` comes beside each weight at once.
        pattern, schedule: see `sparse_training_`.
        resume_from: the folder given to `trainer.train(resume_from_checkpoint=...)`, if it is not in the output folder.
        options: as for `sparse_training_`: every, begin, end, total, filter_fn, include, exclude, seed.

    Raises:
        MissingPackageError: transformers is not installed.
        ModelError, PatternError, RecipeError: as `sparse_training_`.
    """
    try:
        from .transformers_callback import TrainerMasks
    except ImportError as error:
        raise MissingPackageError(
            "A Trainer callback needs transformers and accelerate: pip install 'sparsewright[hf]'."
        ) from error
    return TrainerMasks(SparseTraining(model, pattern, schedule=schedule, **options), resume_from)


def lightning_callback(pattern: PlanLike | None = None, *, schedule: str | AbstractSchedule, **options: Any) -> Any:
    """A Lightning callback for `Trainer(callbacks=[...])`, for modules with one optimiser.

    The state goes into Lightning's checkpoints; `total` is Lightning's estimate of steps unless it is given.

    Args:
        pattern, schedule: see `sparse_training_`. Names of layers are those in the LightningModule.
        options: as for `sparse_training_`: every, begin, end, total, filter_fn, include, exclude, seed.

    Raises:
        MissingPackageError: Lightning is not installed.
    """
    from .lightning_callback import joined_with_lightning

    return joined_with_lightning(pattern=pattern, schedule=schedule, **options)
