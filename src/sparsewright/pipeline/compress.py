"""Stages that change weights: train the dense model if asked, sparsify under a plan, recover."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..core import Plan, RecipeError
from ..hardware import pack_
from ..models import sparsify_
from ..models.tasks.images import AbstractImageTask, shifted
from ..training import recover
from ..training.supervised import train_classifier
from .session import Session, load_weights, save_weights

# Families whose answer is a distribution over classes learn from it; sentence encoders have losses of their own.
LOSS_OF_FAMILY = {
    "encoder": "encoder",
    "causal-lm": "causal_lm",
    "classifier": "classifier",
    "vision": "classifier",
    "generic": "classifier",
}


def train_stage(session: Session) -> None:
    """Train the dense model on the task's labelled images, or take it as it came."""
    section = session.recipe.train
    if section is None:
        return
    task = session.task
    if not isinstance(task, AbstractImageTask):
        raise RecipeError(
            "The recipe's `train` section needs a task with labelled training images, "
            f"got {session.recipe.task.name!r}. Train the model outside and leave the section out."
        )
    images = task.labelled_train()
    size = task.batch
    batches = [
        ({task.argument: images.pixels[start : start + size]}, images.labels[start : start + size])
        for start in range(0, len(images) - size + 1, size)
    ]

    def moved(inputs: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        return {name: shifted(pixels, section.shift, generator) for name, pixels in inputs.items()}

    def work() -> dict[str, Any]:
        losses = train_classifier(
            session.dense,
            batches,
            steps=section.steps,
            lr=section.lr,
            weight_decay=section.weight_decay,
            seed=session.recipe.seed,
            vary=moved if section.shift else None,
            progress=lambda done, all_, loss: session.folder.report("train", f"loss {loss:.3f}", done / all_),
        )
        save_weights(session.dense, session.folder.file("dense.safetensors"))
        return {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}

    depends = {"weights": session.weights_digest, "train": section.model_dump(), "seed": session.recipe.seed}
    session.folder.stage("train", {**depends, "task": task.describe()}, work, ("dense.safetensors",))
    load_weights(session.dense, session.folder.file("dense.safetensors"))
    session.dense.eval()


def sparsified(session: Session, plan: Plan, stage: str) -> tuple[nn.Module, Plan]:
    """A copy of the dense model made sparse under a plan; kept in the run folder, so that it is made once.

    Returns:
        The model, and the plan with the sparsifier that each layer got, also where `auto` chose it.
    """
    file = f"{stage}.safetensors"
    model = session.copy_of_dense()

    def work() -> dict[str, Any]:
        if not plan.sparse_layers:
            save_weights(model, session.folder.file(file))
            return {"plan": plan.to_data(), "errors": {}, "skipped": {}}
        made = sparsify_(
            model,
            plan,
            method=session.recipe.sparsify.method,
            edge=session.recipe.sparsify.edge,
            data=session.task.calibration(),
            progress=lambda done, all_, name: session.folder.report(stage, name, done / all_),
        )
        save_weights(model, session.folder.file(file))
        return {
            "plan": made.plan.to_data(),
            "errors": {name: layer.error for name, layer in made.layers.items()},
            "settings": {name: dict(layer.settings) for name, layer in made.layers.items()},
            "skipped": made.skipped,
        }

    depends = {"plan": plan.to_data(), "method": session.recipe.sparsify.method, "base": base_of(session)}
    kept = session.folder.stage(stage, depends, work, (file,))
    if stage in session.folder.reused:
        load_weights(model, session.folder.file(file))
    made = Plan.from_data(kept["plan"]).layers
    # Only the names: how a pattern treats edges is in no file.
    named = {name: replace(layer, sparsifier=made[name].sparsifier) for name, layer in plan.layers.items()}
    return model, Plan(named)


def as_it_runs(model: nn.Module, plan: Plan) -> nn.Module:
    """The model as it will answer: a packed copy where the plan rounds layers to int8, else the model itself."""
    if not plan.int8_layers:
        return model
    packed = copy.deepcopy(model)
    pack_(packed, plan=plan, force=True)
    return packed.eval()


def recovered(session: Session, model: nn.Module, plan: Plan, stage: str) -> nn.Module:
    """Distil into the sparsified model, in place; goes on from its checkpoint after a kill."""
    section = session.recipe.recover
    if not section.enabled or not plan.sparse_layers:
        return model
    file = f"{stage}.safetensors"
    checkpoint = session.folder.file(f"{stage}.checkpoint")

    def work() -> dict[str, Any]:
        options: dict[str, Any] = {} if section.lr is None else {"lr": section.lr}
        done = recover(
            model,
            session.dense,
            session.task.recovery(),
            minutes=section.minutes,
            steps=section.steps,
            family=LOSS_OF_FAMILY[session.loaded.family],
            blocks=session.block_names,
            seed=session.recipe.seed,
            mask_schedule=section.schedule,
            mask_every=section.every,
            checkpoint=checkpoint,
            checkpoint_every_s=20.0,
            progress=lambda step, all_, loss: session.folder.report(stage, f"loss {loss:.4f}", step / all_),
            **options,
        )
        save_weights(model, session.folder.file(file))
        return {"steps": done.steps, "lr": done.lr, "first_loss": done.losses[0], "last_loss": done.losses[-1]}

    depends: dict[str, Any] = {"plan": plan.to_data(), "recover": section.model_dump(), "base": base_of(session)}
    depends["threads"] = torch.get_num_threads()
    session.folder.stage(stage, depends, work, (file,))
    checkpoint.unlink(missing_ok=True)
    if stage in session.folder.reused:
        load_weights(model, session.folder.file(file))
    return model


def base_of(session: Session) -> dict[str, Any]:
    """What every stage after training depends on."""
    recipe = session.recipe
    return {
        "weights": session.weights_digest,
        "task": recipe.task.model_dump(),
        "seed": recipe.seed,
        "train": None if recipe.train is None else recipe.train.model_dump(),
        "method": recipe.sparsify.method,
        "edge": recipe.sparsify.edge,
    }
