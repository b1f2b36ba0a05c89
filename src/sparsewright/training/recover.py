"""Recovery: a short distillation from the dense model, masks kept exactly.

Source: Sanh et al. 2020, arXiv:2005.07683 (distilling while pruning); Frantar et al. 2023, arXiv:2301.00774 (one-shot
first, so that only a little is left to give back). The same steps give the same bits: batches come in a fixed order,
the model stays in eval mode (no dropout), and a killed run goes on from its checkpoint as if it had never stopped.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..core import DataError, ModelError, NumericError, RecipeError
from ..models import Batch, as_batch, eval_mode
from .checkpoint import Checkpoint, read_checkpoint, run_digest, write_checkpoint
from .keep_masks import KeptMasks
from .learning_rate import choose_rate
from .losses import AbstractDistillation, Answer, distillations
from .masked_weights import masked_weights
from .schedule_file import as_state, named_tensors
from .schedules import AbstractSchedule, Fixed, schedules
from .sparse_training import SparseTraining

TIMED_STEPS = 4
# Batches that a trial of a learning rate is judged on.
JUDGED_BATCHES = 4


@dataclass(frozen=True)
class Recovery:
    """What a recovery did.

    Attributes:
        steps: optimiser steps in all, earlier processes included.
        losses: loss of every step, in order.
        seconds: wall time of this process's share.
        resumed_at: the step this process began with; 0 for a fresh run.
        lr: the peak learning rate, also where `auto` chose it.
    """

    steps: int
    losses: list[float]
    seconds: float
    resumed_at: int
    lr: float


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome, besides model, teacher and batches."""

    steps: int | None
    minutes: float | None
    lr: float | Literal["auto"]
    warmup: float
    weight_decay: float
    clip: float
    betas: tuple[float, float]
    embeddings: bool
    seed: int
    mask_schedule: str
    mask_every: int | None


def recover(
    model: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Any],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    family: str | AbstractDistillation = "encoder",
    blocks: Sequence[str] = (),
    lr: float | Literal["auto"] = 3e-4,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.98),
    embeddings: bool = False,
    seed: int = 0,
    mask_schedule: str | AbstractSchedule = "fixed",
    mask_every: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Recovery:
    """Train a sparsified model, in place, to answer as its dense teacher does.

    Args:
        model: sparsified, not yet packed: zeros in `weight` and a buffer `weight_mask` beside it.
        teacher: the dense model; only read.
        batches: unlabelled; a tensor, a tuple of arguments or a dict of keyword arguments each. They are run through in
            a random order that `seed` fixes, again and again where the budget is larger.
        minutes: budget in wall time. It is turned into steps once, by timing a few on a copy, and the number is stored
            in the checkpoint, so that a resumed run ends with the same weights.
        steps: budget in optimiser steps; exactly one of `minutes` and `steps` is given.
        family: name in the registry `distillations`, or a distillation of your own.
        blocks: names of submodules whose outputs are compared too (usually the transformer blocks, in run order).
        lr: peak learning rate of AdamW; it rises linearly over the first `warmup` share of the steps and falls
            linearly to zero at the last. `auto` tries three for a twentieth of the steps each, 20 at most, from the
            same start; the choice is kept in the checkpoint and in the result.
        warmup: share of the steps, 0..1.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        betas: of AdamW.
        embeddings: whether embedding tables are trained as well; they are large, and sparsity does not touch them.
        seed: fixes the order of the batches, and what a mask schedule draws.
        mask_schedule: name in the registry `schedules`, or a schedule of your own: how masks move meanwhile, each
            within its pattern. Those that start dense are refused: recovery starts from a sparsified model.
        mask_every: steps from one change of masks to the next; default the schedule's own.
        checkpoint: file to go on from when it exists, and to write now and then; finished runs are read back whole.
        checkpoint_every_s: seconds between two writes.
        progress: called after every step with (steps done, steps in all, loss).

    Returns:
        The losses and the time. Masked weights are exactly zero, masks are as they were (unless a schedule moved them),
        and so is the train mode.

    Raises:
        RecipeError: not exactly one budget, one below one step, or a mask schedule that starts dense.
        DataError: no batches, one of another form, or a checkpoint of another run.
        ModelError: packed weights, or a block name that the model does not have.
        NumericError: the loss became NaN or infinite; the model is left as it was before that step.
    """
    if (minutes is None) == (steps is None):
        raise RecipeError("Recovery takes exactly one budget, `minutes` or `steps`. Give one of them.")
    enough = (
        isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1
        if minutes is None
        else isinstance(minutes, int | float) and 0 < minutes < math.inf
    )
    if not enough:
        raise RecipeError(
            "A recovery budget is a whole number of steps, at least one, or minutes above zero, got "
            f"minutes={minutes}, steps={steps}."
        )
    rated = lr == "auto" if isinstance(lr, str) else 0 < lr < math.inf
    if not (rated and 0 <= warmup <= 1 and clip > 0 and weight_decay >= 0 and seed >= 0):
        raise RecipeError(
            "Recovery takes lr (or 'auto') and clip above zero, warmup from 0 to 1, weight_decay and seed of at least "
            f"0, got lr={lr}, clip={clip}, warmup={warmup}, weight_decay={weight_decay}, seed={seed}."
        )
    if not batches:
        raise DataError("Recovery needs at least one batch of unlabelled data; the task gave none.")
    calls = [as_batch(batch) for batch in batches]
    distillation = distillations.get(family) if isinstance(family, str) else family
    moves = schedules.get(mask_schedule) if isinstance(mask_schedule, str) else mask_schedule
    if moves.starts_dense:
        raise RecipeError(
            f"Recovery starts from the masks of a sparsified model, and the schedule {type(moves).__name__} starts "
            "dense. Take fixed, periodic, sr_ste, set or rigl, or train with sparse_training_ instead."
        )
    settings = Settings(
        steps, minutes, lr, warmup, weight_decay, clip, betas, embeddings, seed, repr(moves), mask_every
    )
    started = time.perf_counter()
    with eval_mode(model), eval_mode(teacher):
        run = Run(model, teacher, calls, distillation, blocks, settings, moves)
        try:
            path = None if checkpoint is None else Path(checkpoint)
            first = run.begin(path)
            written = time.perf_counter()
            while run.step < run.total:
                loss = run.advance()
                if path is not None and (run.step == run.total or time.perf_counter() - written > checkpoint_every_s):
                    run.save(path)
                    written = time.perf_counter()
                if progress is not None:
                    progress(run.step, run.total, loss)
        finally:
            run.close()
    return Recovery(run.total, run.losses, time.perf_counter() - started, first, run.lr)


class Run:
    """One recovery under way: model, optimiser, and how far it is."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Batch],
        distillation: AbstractDistillation,
        blocks: Sequence[str],
        settings: Settings,
        moves: AbstractSchedule,
    ) -> None:
        self.model, self.teacher, self.batches = model, teacher, batches
        self.distillation, self.blocks, self.settings = distillation, tuple(blocks), settings
        masked = masked_weights(model)
        self.trained = trained_parameters(model, settings.embeddings)
        self.frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        chosen = {id(parameter) for parameter in self.trained.values()}
        self.frozen = [parameter for parameter in self.frozen if id(parameter) not in chosen]
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        # 0 until `begin` chooses it.
        self.lr = 0.0 if settings.lr == "auto" else settings.lr
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=self.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.masks: KeptMasks | SparseTraining
        if isinstance(moves, Fixed):
            self.masks = KeptMasks(masked, self.optimizer)
        else:
            options: dict[str, Any] = {"every": settings.mask_every, "total": settings.steps, "seed": settings.seed}
            self.masks = SparseTraining(model, schedule=moves, **options)
        self.step, self.total = 0, settings.steps or 0
        self.losses: list[float] = []
        self._order: tuple[int, list[int]] = (-1, [])

    def begin(self, path: Path | None) -> int:
        """Go on from the checkpoint if there is one, else fix the number of steps; the first step's number."""
        described: dict[str, Any] = asdict(self.distillation) if is_dataclass(self.distillation) else {}
        settings = {**asdict(self.settings), "loss": type(self.distillation).__name__, "weights": described}
        settings |= {"blocks": self.blocks, "threads": torch.get_num_threads(), "batches": len(self.batches)}
        tensors = [*self.model.state_dict().values(), *(value for batch in self.batches for value in batch.values)]
        self.digest = run_digest(settings, (tensor for tensor in tensors if is_plain(tensor)))
        saved = read_checkpoint(path, self.digest) if path is not None and path.exists() else None
        if saved is not None:
            self.step, self.total = int(saved.state["step"]), int(saved.state["total"])
        elif self.settings.minutes is not None:
            self.total = self._steps_in(self.settings.minutes * 60.0)
        if saved is None and self.settings.lr == "auto":
            # Rates are tried under the masks as they are, also where they will move.
            with KeptMasks(masked_weights(self.model), self.optimizer):
                self.lr = choose_rate(self._trial, self.total)
        if isinstance(self.masks, SparseTraining):
            self.masks.attach(self.optimizer, self.total)
        if saved is not None:
            self._restore(saved)
        elif path is not None and (self.settings.minutes is not None or self.settings.lr == "auto"):
            self.save(path)
        return self.step

    def _trial(self, rate: float, steps: int) -> float:
        """Train a few steps at a rate, judge the loss on the batches that come next, and put everything back."""
        total, random = self.total, torch.get_rng_state()
        start = [parameter.detach().clone() for parameter in self.trained.values()]
        self.lr, self.total = rate, steps
        try:
            for _ in range(steps):
                self.advance()
            with torch.no_grad():
                losses = [self._loss(self._batch(steps + number)).item() for number in range(JUDGED_BATCHES)]
            return sum(losses) / len(losses)
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.trained.values(), start):
                    parameter.copy_(value)
            self.optimizer.zero_grad(set_to_none=True)
            self.optimizer.state.clear()
            self.total, self.step, self.losses = total, 0, []
            torch.set_rng_state(random)

    def advance(self) -> float:
        """One optimiser step; the loss before it.

        Raises:
            NumericError: the loss or a gradient is NaN or infinite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * schedule(self.step, self.total, self.settings.warmup)
        loss = self._backward(self._batch(self.step))
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.settings.clip)
        if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
            raise NumericError(
                f"Recovery met a loss of {loss} and a gradient norm of {float(norm)} at step {self.step + 1}. "
                f"Lower the learning rate (now {self.lr}), or check the model and the batches for NaN."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.losses.append(loss)
        return loss

    def _backward(self, batch: Batch) -> float:
        loss = self._loss(batch)
        loss.backward()
        return loss.item()

    def _loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            theirs = answer(self.teacher, batch, self.blocks)
        return self.distillation.loss(answer(self.model, batch, self.blocks), theirs, batch.kwargs)

    def _batch(self, step: int) -> Batch:
        epoch, place = divmod(step, len(self.batches))
        if self._order[0] != epoch:
            order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.batches))
            self._order = (epoch, order.tolist())
        return self.batches[self._order[1][place]]

    def _steps_in(self, seconds: float) -> int:
        """How many steps fit: a few are timed without moving the weights, then batches are counted by their size."""
        sizes = [batch_size(self._batch(step)) for step in range(TIMED_STEPS)]
        self._backward(self._batch(0))  # the first pass also allocates
        started = time.perf_counter()
        for step in range(TIMED_STEPS):
            self._backward(self._batch(step))
        self.optimizer.zero_grad(set_to_none=True)
        second_per_size = (time.perf_counter() - started) / sum(sizes)
        spent, steps = 0.0, 0
        while True:
            spent += second_per_size * batch_size(self._batch(steps))
            if spent > seconds:
                return max(steps, 1)
            steps += 1

    def save(self, path: Path) -> None:
        """Write weights, moments and progress."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            tensors[f"weight/{name}"] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        tensors["random"] = torch.get_rng_state()
        if isinstance(self.masks, SparseTraining):
            tensors |= {f"mask/{name}": layer.mask for name, layer in self.masks.layers.items()}
            tensors |= named_tensors(self.masks.state_dict())
        state = {"digest": self.digest, "step": self.step, "total": self.total, "losses": self.losses, "lr": self.lr}
        write_checkpoint(path, tensors, state)

    def _restore(self, saved: Checkpoint) -> None:
        self.losses = [float(loss) for loss in saved.state["losses"]]
        self.lr = float(saved.state["lr"])
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(saved.tensors[f"weight/{name}"])
                if self.step:
                    keys = ("step", "exp_avg", "exp_avg_sq")
                    self.optimizer.state[parameter] = {key: saved.tensors[f"{key}/{name}"].clone() for key in keys}
        torch.set_rng_state(saved.tensors["random"])
        if isinstance(self.masks, SparseTraining):
            for name, layer in self.masks.layers.items():
                layer.set_mask(saved.tensors[f"mask/{name}"], layer.pattern)
            settings = self.masks.state_dict()["settings"]
            self.masks.load_state_dict(as_state(settings, self.step, saved.tensors))

    def close(self) -> None:
        """Give the parameters back as they came: trainable where they were, without gradients."""
        self.masks.remove()
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self.frozen:
            parameter.requires_grad_(True)


def trained_parameters(model: nn.Module, embeddings: bool) -> dict[str, nn.Parameter]:
    """Parameters that recovery moves, by name, each once: all that require gradients, embedding tables on request.

    Raises:
        ModelError: there are none.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) and not embeddings}
    chosen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in tables
    }
    if not chosen:
        raise ModelError("Recovery found no parameter that requires a gradient. Call model.requires_grad_(True) first.")
    return chosen


def answer(model: nn.Module, batch: Batch, blocks: Sequence[str]) -> Answer:
    """Run the model and keep the outputs of the named blocks.

    Raises:
        ModelError: a block name is unknown.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in blocks if name not in modules]
    if unknown:
        raise ModelError(f"The model has no block {unknown[0]!r}, whose output recovery was to compare.")
    hidden: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden[name] = main_tensor(output)

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in blocks]
    try:
        output = main_tensor(batch.run(model))
    finally:
        for handle in handles:
            handle.remove()
    return Answer(output, [hidden[name] for name in blocks])


def main_tensor(output: Any) -> Tensor:
    """The tensor itself, `.logits`, `.last_hidden_state`, or the first of a tuple.

    Raises:
        ModelError: none of these.
    """
    for value in (output, getattr(output, "logits", None), getattr(output, "last_hidden_state", None)):
        if isinstance(value, Tensor):
            return value
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise ModelError(
        f"Recovery compares tensors, `.logits` or `.last_hidden_state`, but the model returned {type(output).__name__}."
    )


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: linear up over the warm-up, linear down to zero after the last step."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return (total - step) / max(1, total - rise)


def batch_size(batch: Batch) -> int:
    """Elements of the batch's largest tensor: what its time grows with."""
    return max((value.numel() for value in batch.values if is_plain(value)), default=1)


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor that has bytes."""
    return isinstance(value, Tensor) and not value.is_meta
