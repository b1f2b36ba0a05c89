"""Callbacks do in a trainer what `sparse_training_` does in a plain loop, and resumed runs end with the same bits."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.utils.data import Dataset

from sparsewright.core import DataError, MissingPackageError, ModelError
from sparsewright.models import ensure_torchvision_imports
from sparsewright.training import lightning_callback, sparse_training_, trainer_callback
from sparsewright.training.lightning_callback import LightningMasks

STEPS, SCHEDULES = 8, ("gradual", "sr_ste", "rigl", "periodic")
OPTIONS: dict[str, Any] = {"every": 2, "end": 7}
RULES = {"first": "2:4t", "second": "1:4x4"}


class Small(nn.Module):
    """Takes and gives what transformers' Trainer wants."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 24)
        self.second = nn.Linear(24, 32)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        output = self.second(torch.tanh(self.first(x)))
        return output if y is None else {"loss": F.mse_loss(output, y), "output": output}


class Pairs(Dataset[Any]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(64, 32, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.x[index].sin()}


def states_are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def transformers() -> Any:
    ensure_torchvision_imports()
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


def trainer_of(transformers: Any, folder: Path, schedule: str, rules: Any = RULES) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        save_steps=3,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_drop_last=True,
    )
    model = Small()
    callback = trainer_callback(model, rules, schedule=schedule, **OPTIONS)
    return transformers.Trainer(model, arguments, train_dataset=Pairs(), callbacks=[callback])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_transformers_trainer_that_is_resumed_ends_with_the_same_bits(
    transformers: Any, tmp_path: Path, schedule: str
) -> None:
    straight = trainer_of(transformers, tmp_path / "run", schedule)
    straight.train()
    finished = straight.model.state_dict()
    for name, pattern in RULES.items():
        layer = straight.model.get_submodule(name)
        assert layer.weight_pattern == pattern
        assert not layer.weight.detach()[~layer.weight_mask].any()
    resumed = trainer_of(transformers, tmp_path / "run", schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert states_are_equal(resumed.model.state_dict(), finished)


def test_a_checkpoint_of_another_schedule_is_refused(transformers: Any, tmp_path: Path) -> None:
    trainer_of(transformers, tmp_path, "rigl").train()
    other = trainer_of(transformers, tmp_path, "periodic")
    with pytest.raises(DataError, match="belongs to another training"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


class StandIn:
    """What Lightning's Trainer does with a callback and one optimiser, in its order: setup, then the checkpoint into
    the model and the callback, then the optimiser and its state, then the steps, each with a closure."""

    def __init__(self, callback: LightningMasks, saved: dict[str, Any] | None = None) -> None:
        self.model, self.callback = Small(), callback
        callback.setup(self, self.model, "fit")
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            callback.load_state_dict(saved["callback"])
        self.optimizers = [AdamW(self.model.parameters(), lr=1e-2)]
        self.estimated_stepping_batches = STEPS
        if saved is not None:
            self.optimizers[0].load_state_dict(saved["optimizer"])

    def run(self, first: int, last: int) -> None:
        self.callback.on_train_start(self, self.model)
        for step in range(first, last):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))

            def closure(x: Tensor = x) -> Tensor:
                loss = F.mse_loss(self.model(x), x.sin())
                self.optimizers[0].zero_grad()
                loss.backward()
                return loss

            self.optimizers[0].step(closure=closure)

    def checkpoint(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizers[0], "callback": self.callback}
        return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lightnings_order_of_hooks_trains_and_resumes_as_a_plain_loop_does(schedule: str) -> None:
    model = Small()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    with sparse_training_(model, optimizer, RULES, schedule=schedule, **OPTIONS):
        for step in range(STEPS):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            F.mse_loss(model(x), x.sin()).backward()
            optimizer.step()
    whole = StandIn(LightningMasks(pattern=RULES, schedule=schedule, **OPTIONS))
    whole.run(0, 5)
    saved = whole.checkpoint()
    resumed = StandIn(LightningMasks(pattern=RULES, schedule=schedule, **OPTIONS), saved)
    resumed.run(5, STEPS)
    resumed.callback.on_train_end(resumed, resumed.model)
    assert states_are_equal(resumed.model.state_dict(), model.state_dict())


def test_two_optimisers_are_refused() -> None:
    trainer = StandIn(LightningMasks(pattern=RULES, schedule="set"))
    trainer.optimizers *= 2
    with pytest.raises(ModelError, match="follows one optimiser, this module has 2"):
        trainer.run(0, 1)


def test_without_lightning_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match="pip install lightning"):
        lightning_callback(RULES, schedule="set")


@pytest.mark.parametrize("schedule", ["sr_ste", "rigl"])
def test_lightning_itself_trains_and_resumes_to_the_same_bits(tmp_path: Path, schedule: str) -> None:
    ensure_torchvision_imports()
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Small()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss: Tensor = self.model(batch["x"], batch["y"])["loss"]
            return loss

        def configure_optimizers(self) -> Any:
            return AdamW(self.parameters(), lr=1e-2)

    class SaveAtFour(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "four.ckpt")

    def fit(checkpoint: Path | None = None) -> Any:
        rules = {f"model.{name}": pattern for name, pattern in RULES.items()}
        masks = lightning_callback(rules, schedule=schedule, **OPTIONS)
        trainer = lightning.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[masks, SaveAtFour()],
            default_root_dir=tmp_path,
        )
        module = Module()
        # One batch an epoch, because Lightning does not find its place in the data again.
        trainer.fit(module, torch.utils.data.DataLoader(Pairs(), batch_size=64), ckpt_path=checkpoint)
        return module

    straight, resumed = fit(), fit(tmp_path / "four.ckpt")
    assert states_are_equal(resumed.state_dict(), straight.state_dict())
    for name in RULES:
        layer = resumed.model.get_submodule(name)
        assert not layer.weight.detach()[~layer.weight_mask].any()
