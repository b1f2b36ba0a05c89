"""What one run holds in memory: the dense model, its task, its layers, its run folder."""

import copy
import hashlib
import importlib
import os
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core import (
    AbstractPattern,
    Dense,
    MissingPackageError,
    ModelError,
    PatternError,
    Plan,
    RecipeError,
    atomic_write,
    parse_pattern,
)
from ..models import MASK, LayerRef, LoadedModel, blocks, layers, load_model
from ..models.sources import refuse_call
from ..models.tasks import AbstractTask, Quality, tasks
from ..solvers import solve_mask
from .folder import RunFolder
from .recipe import Recipe


@final
@dataclass
class Session:
    """One run; heavy things are made when first asked for, so that a resumed run loads only what it needs."""

    recipe: Recipe
    folder: RunFolder
    _scored: dict[str, Quality] = field(default_factory=dict)
    _weights_digest: str = ""

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model as its source gives it, in eval mode."""
        torch.manual_seed(self.recipe.seed)
        loaded = load_model(self.recipe.model)
        loaded.model.eval()
        self._weights_digest = _digest_of(loaded.model)
        return loaded

    @property
    def weights_digest(self) -> str:
        """Sha256 of the weights as the source gave them, so that another checkpoint at the same path starts afresh."""
        _ = self.loaded
        return self._weights_digest

    @cached_property
    def task(self) -> AbstractTask:
        """Data and score; the test split is shut."""
        return self.task_for(self.loaded.tokenizer)

    def task_for(self, tokenizer: Any) -> AbstractTask:
        """The same with a tokenizer at hand, so that the model need not be loaded."""
        section = self.recipe.task
        data_folder = self.folder.path / "data"
        if section.name.startswith("python:"):
            return _task_from_python(section.name, section.options)
        kind = tasks.get(section.name)
        return kind.create(section.options, tokenizer=tokenizer, folder=data_folder, seed=self.recipe.seed)

    @property
    def dense(self) -> nn.Module:
        """The dense model: baseline and teacher. Never changed after training; copy it to sparsify."""
        return self.loaded.model

    def require_fitting_task(self) -> None:
        """Run the dense model once on the task's input, before anything takes time.

        Raises:
            RecipeError: the model does not take the arguments that the task gives.
        """
        batch = self.task.bench_batch(1, self.recipe.measure.length)
        try:
            with torch.inference_mode():
                self.dense(**batch)
        except TypeError as error:
            raise RecipeError(
                f"The task {self.recipe.task.name!r} calls the model with {', '.join(batch)}, which it does not take "
                f"({error}). Choose a task for this kind of model, or name its argument in the task's options."
            ) from error

    def copy_of_dense(self) -> nn.Module:
        """A deep copy to work on."""
        return copy.deepcopy(self.dense)

    @cached_property
    def layers(self) -> list[LayerRef]:
        """Layers of the dense model that take part, with the reason of those that do not."""
        section = self.recipe.sparsify
        found = layers(self.dense, section.include or None, section.exclude or None)
        if not any(not layer.skipped_reason for layer in found):
            reasons = sorted({layer.skipped_reason for layer in found})
            raise ModelError(
                f"{self.recipe.model} has no layer that could be sparse: {'; '.join(reasons) or 'no linear layer'}. "
                "Check sparsify.include and sparsify.exclude."
            )
        return found

    @cached_property
    def block_names(self) -> list[str]:
        """Names of the model's blocks in run order; empty where it has none."""
        return [name for name, _ in blocks(self.dense)]

    @cached_property
    def given_plan(self) -> Plan | None:
        """The recipe's own plan, by layer name; layers that no rule names stay dense. None where the run searches one.

        Raises:
            PlanError: a rule names no layer that takes part, or a pattern does not fit its layer.
        """
        rules = self.recipe.sparsify.plan
        if rules is None:
            return None
        shapes = {layer.name: layer.shape for layer in self.candidates}
        plan = Plan.from_rules(rules, shapes)
        edge = self.recipe.sparsify.edge
        plan = Plan({k: replace(layer, pattern=layer.pattern.with_edge(edge)) for k, layer in plan.layers.items()})
        for name, layer in plan.layers.items():
            layer.pattern.require_fit(shapes[name], name)
        return plan

    @property
    def patterns(self) -> list[AbstractPattern]:
        """The search space: the recipe's patterns, or those of its own plan.

        Raises:
            PatternError: a pattern fits no layer of this model.
        """
        if self.given_plan is not None:
            return list(dict.fromkeys(layer.pattern for layer in self.given_plan.sparse_layers.values()))
        found = [parse_pattern(text) for text in self.recipe.sparsify.patterns]
        for pattern in found:
            fitting = [layer.shape for layer in self.candidates if pattern.fits(layer.shape)]
            if not fitting:
                first = self.candidates[0]
                raise PatternError(
                    f"The recipe's pattern {pattern} fits no layer of this model; {first.name} of shape {first.shape}: "
                    f"{'; '.join(pattern.why_not(first.shape))}. Take it out of sparsify.patterns."
                )
            if not isinstance(pattern, Dense):
                # A pattern without a solver is refused here, before anything is measured.
                solve_mask(torch.zeros(min(fitting)), pattern)
        return found

    @property
    def candidates(self) -> list[LayerRef]:
        """Layers that take part."""
        return [layer for layer in self.layers if not layer.skipped_reason]

    def score(self, name: str, model: nn.Module, split: str) -> Quality:
        """Score a model once per name and split; the items are kept in the run folder beside the stage."""
        key = f"{name}-{split}"
        if key not in self._scored:
            reference = None if model is self.dense else self.dense
            quality = self.task.score(model, split, reference)  # type: ignore[arg-type]
            self._scored[key] = quality
            self.write_items(key, quality)
        return self._scored[key]

    def write_items(self, key: str, quality: Quality) -> None:
        """Keep per-item scores, so that paired intervals can be drawn without scoring again."""
        with atomic_write(self.folder.file(f"{key}.items.npy")) as temporary, temporary.open("wb") as stream:
            np.save(stream, quality.items, allow_pickle=False)

    def read_items(self, key: str) -> NDArray[np.float64]:
        """Per-item scores that `score` kept."""
        items: NDArray[np.float64] = np.load(self.folder.file(f"{key}.items.npy"), allow_pickle=False)
        return items


def _digest_of(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _task_from_python(source: str, options: dict[str, Any]) -> AbstractTask:
    """`python:package.module:factory`: the user's own task, from the current folder or an installed package."""
    module_name, _, factory = source.removeprefix("python:").partition(":")
    if not module_name or not factory:
        raise RecipeError(f"A task in Python is written python:package.module:factory, got {source!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module_name), factory)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"The task's module cannot be imported: {error}. Run from its folder.") from error
    except AttributeError as error:
        raise RecipeError(f"The module {module_name} has no {factory!r} for the task {source!r}.") from error
    if not callable(make):
        raise RecipeError(f"{source} is no function or class, got {type(make).__name__}.")
    refuse_call(make, options, source)
    task = make(**options)
    if not isinstance(task, AbstractTask):
        raise RecipeError(f"{source} must return an AbstractTask, got {type(task).__name__}.")
    return task


def save_weights(model: nn.Module, path: Path) -> None:
    """All parameters and buffers, masks included, each shared tensor once, whole or not at all."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        tensors[name] = tensor.detach().contiguous()
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Into a model of the same structure what `save_weights` wrote; masks come back as buffers."""
    tensors = load_file(path)
    for name in [name for name in tensors if name.rpartition(".")[2] == MASK]:
        owner = model.get_submodule(name.rpartition(".")[0])
        owner.register_buffer(MASK, tensors.pop(name))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    own = {id(t) for n, t in model.state_dict(keep_vars=True).items() if n in tensors}
    lost = [n for n, t in model.state_dict(keep_vars=True).items() if n in missing and id(t) not in own]
    lost = [name for name in lost if not name.endswith(MASK)]
    if lost or unexpected:
        raise ModelError(f"{path} holds another model: missing {lost[:3]}, unexpected {unexpected[:3]}.")
