"""Mask schedules inside Lightning's Trainer. Lightning itself is imported only when a callback is asked for."""

import math
from typing import Any

from ..core import MissingPackageError, ModelError
from .sparse_training import SparseTraining


class LightningMasks:
    """The hooks of a Lightning callback; `lightning_callback` joins them with Lightning's own class.

    The state goes into Lightning's checkpoints. Masks come beside the weights in `setup`, before Lightning loads a
    checkpoint into the model.

    Args:
        options: for `SparseTraining`, besides the model.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._loaded: dict[str, Any] = {}
        self.training: SparseTraining | None = None

    @property
    def state_key(self) -> str:
        """Under which Lightning keeps the state."""
        return "sparsewright.training.LightningMasks"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the first masks beside the weights."""
        if stage == "fit" and self.training is None:
            self.training = SparseTraining(pl_module, **self._options)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the one optimiser, and go on from the checkpoint if there was one."""
        assert self.training is not None
        if len(trainer.optimizers) != 1:
            raise ModelError(
                f"A mask schedule follows one optimiser, this module has {len(trainer.optimizers)}. "
                "Use sparse_training_ in the module itself, for the optimiser that trains the sparse layers."
            )
        total = trainer.estimated_stepping_batches
        self.training.attach(trainer.optimizers[0], total=int(total) if math.isfinite(total) else None)
        if self._loaded:
            self.training.load_state_dict(self._loaded)
            self._loaded = {}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Bring masks to their pattern and take the hooks off."""
        assert self.training is not None
        self.training.finish()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return {} if self.training is None else self.training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts, because the optimiser comes later."""
        self._loaded = state_dict


def joined_with_lightning(**options: Any) -> Any:
    """A `LightningMasks` that is a Lightning callback as well.

    Raises:
        MissingPackageError: neither `lightning` nor `pytorch_lightning` is installed.
    """
    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        try:
            from pytorch_lightning.callbacks import Callback
        except ImportError as error:
            raise MissingPackageError("A Lightning callback needs `lightning`: pip install lightning.") from error

    class Joined(LightningMasks, Callback):
        pass

    return Joined(**options)
