"""Mask schedules inside transformers' Trainer; imported only when asked for, because transformers is optional."""

from pathlib import Path
from typing import Any, final

from transformers import TrainerCallback

from ..core import ModelError, is_distributed
from .schedule_file import load_schedule, save_schedule
from .sparse_training import SparseTraining

FILE = "sparse_training.safetensors"
"""Name of the schedule's own file in each checkpoint folder."""


@final
class TrainerMasks(TrainerCallback):
    """Follows the Trainer's optimiser; writes one file into each checkpoint folder and resumes from it.

    Args:
        training: not attached; its masks are beside the model's weights already, so that checkpoints can be loaded.
        resume_from: the checkpoint folder that `trainer.train(resume_from_checkpoint=...)` gets, where it is not
            `checkpoint-<step>` in the output folder.
    """

    def __init__(self, training: SparseTraining, resume_from: str | Path | None = None) -> None:
        self.training, self._resume_from = training, resume_from

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Attach, and go on from the file of the checkpoint if there were steps before."""
        if any(is_distributed(layer.parameter) for layer in self.training.layers.values()):
            raise ModelError(
                "Mask schedules inside transformers' Trainer take models that are not sharded. Train with DDP, or use "
                "sparse_training_ in a loop of your own after fully_shard."
            )
        # accelerate wraps the optimiser; hooks belong to the one inside.
        optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])
        self.training.attach(optimizer, total=state.max_steps)
        if state.global_step:
            folder = Path(self._resume_from or self._folder(args, state))
            load_schedule(self.training, folder / FILE)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the schedule's state beside the model's; masks and moments are the same on every process."""
        if state.is_world_process_zero:
            save_schedule(self.training, self._folder(args, state) / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Bring masks to their pattern and take the hooks off."""
        self.training.finish()

    def _folder(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"
