"""A task: the text or images a model is calibrated on and the number it is judged by.

A task hands out calibration and recovery batches freely, and scores a model on a named split. The test split stays shut
until `open_test()`, so that a search cannot learn from it by accident (Dwork et al. 2015, arXiv:1506.02629, on what
reusing a holdout costs).
"""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core import DataError, RecipeError, Registry, suggest
from ..modes import evaluating

Split = Literal["validation", "test"]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Quality:
    """What one model earned on one split.

    Attributes:
        value: the mean of `items`, higher is better; one point is 0.01.
        items: `(n,)` float64, each item's own share, so that two models can be compared pair by pair.
        slices: `n` names, one per item: the part of the data it belongs to.
        extra: further figures that are reported but not budgeted, by name.
    """

    value: float
    items: NDArray[np.float64]
    slices: list[str]
    extra: dict[str, float] = field(default_factory=dict)

    def by_slice(self) -> dict[str, float]:
        """Mean of the items of each slice, in alphabetical order of the slices."""
        names = np.asarray(self.slices)
        return {str(name): float(self.items[names == name].mean()) for name in np.unique(names)}


@dataclass(frozen=True)
class PairedDifference:
    """How far one model is from another on the same items.

    Attributes:
        mean: mean of the item-wise differences; negative means that quality was lost.
        standard_error: of that mean, from the spread of the differences, not of the scores.
    """

    mean: float
    standard_error: float


def paired_difference(model: Quality, reference: Quality) -> PairedDifference:
    """Compare two models item by item.

    Args:
        model: the model in question.
        reference: the model it is held against, scored on the same split.

    Returns:
        `model - reference` and its standard error.

    Raises:
        DataError: the two were not scored on the same items.
    """
    if model.items.shape != reference.items.shape or model.slices != reference.slices:
        raise DataError(
            f"A paired difference needs the same items on both sides, got {len(model.items)} and "
            f"{len(reference.items)}. Score both models on the same split of the same task."
        )
    difference = model.items - reference.items
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("inf")
    return PairedDifference(float(difference.mean()), error)


class AbstractTask(ABC):
    """Data and a score. A task's keyword arguments are the options of the recipe."""

    metric: str
    """Name of `Quality.value` as reports print it."""

    def __init__(self) -> None:
        self._test_open = False

    def open_test(self) -> None:
        """Allow `score(model, "test")` from now on. Call it once, after the search and the recovery."""
        self._test_open = True

    @property
    def test_is_open(self) -> bool:
        """Whether `open_test` was called."""
        return self._test_open

    def score(self, model: nn.Module, split: Split, reference: nn.Module | None = None) -> Quality:
        """Judge a model.

        Args:
            model: run in eval mode without gradients; its mode is restored.
            split: `"validation"`, or `"test"` after `open_test()`.
            reference: the dense model, for tasks that also report fidelity to it; it must not change between calls.

        Returns:
            The quality; higher is better.

        Raises:
            DataError: unknown split, or the test split is still shut.
            NumericError: the model produced NaN or infinity.
        """
        if split not in get_args(Split):
            raise DataError(f"A task has the splits {', '.join(get_args(Split))}, got {split!r}.")
        if split == "test" and not self._test_open:
            raise DataError(
                "The test split is opened once, after the search and sparsification have finished. "
                "Use split='validation' until then, or call open_test() at the end."
            )
        with evaluating(model):
            return self._score(model, split, reference)

    @abstractmethod
    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        """Score in inference mode; the split is known to be open."""

    @abstractmethod
    def calibration(self) -> list[Batch]:
        """Batches for layer statistics, `model(**batch)`; never from validation or test."""

    @abstractmethod
    def recovery(self) -> list[Batch]:
        """Unlabelled batches for distillation, `model(**batch)`; never from validation or test."""

    @abstractmethod
    def bench_batch(self, batch: int, length: int) -> Batch:
        """One input for timing: `batch` items of exactly `length` tokens where the model takes tokens."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Counts, options and sha256 of the data, as plain JSON values."""


class AbstractTaskKind(ABC):
    """A task by name: what the registry `tasks` holds. Subclasses name the class and say what it is about."""

    task: type[AbstractTask]
    about: str

    def create(self, options: Mapping[str, Any], *, tokenizer: Any, folder: Path, seed: int) -> AbstractTask:
        """Build the task from a recipe's options.

        Args:
            options: the recipe's keys for this task: the task class's keyword arguments.
            tokenizer: the loaded model's tokenizer, or None where it has none.
            folder: where the task may keep its item list and cached text.
            seed: fixes every random choice of the task.

        Raises:
            RecipeError: an option that the task does not know, or one that it lacks.
        """
        given = {"tokenizer": tokenizer, "folder": folder, "seed": seed}
        parameters = inspect.signature(self.task).parameters
        known = [name for name in parameters if name not in given]
        for name in options:
            if name not in known:
                raise RecipeError(f"The task has no option {name!r}. {suggest(name, known)}")
        for name in known:
            if name not in options and parameters[name].default is inspect.Parameter.empty:
                raise RecipeError(f"The task needs the option {name!r}; name it beside the task in the recipe.")
        return self.task(**options, **{name: value for name, value in given.items() if name in parameters})


tasks: Registry[AbstractTaskKind] = Registry("tasks", AbstractTaskKind)


def sha256_of(chunks: Iterator[bytes] | list[bytes]) -> str:
    """Hex sha256 of the chunks in order, each with its length in front so that borders count."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def first_tensor(output: Any) -> Tensor:
    """The tensor a model call answers with: itself, its logits or last hidden state, or the first of a tuple.

    Raises:
        DataError: none of these is there.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise DataError(
        f"A task reads a tensor, `.logits`, `.last_hidden_state` or the first of a tuple, got {type(output).__name__}. "
        "Wrap the model so that it returns one of these."
    )


def in_batches(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `range(count)` in order."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def length_batches(lengths: list[int], size: int, seed: int, pool: int = 32) -> list[list[int]]:
    """Random batches of items of similar length, so that little is spent on padding.

    Args:
        lengths: token count of each item.
        size: items per batch; a short rest is dropped unless it is all there is.
        seed: fixes the order.
        pool: how many batches are sorted by length together; larger means less padding, less mixing.

    Returns:
        Item numbers per batch, the batches in random order.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    batches: list[list[int]] = []
    for part in in_batches(len(order), size * pool):
        chunk = sorted(order[part].tolist(), key=lambda item: (lengths[item], item))
        batches += [chunk[piece] for piece in in_batches(len(chunk), size)]
    full = [batch for batch in batches if len(batch) == size] or batches
    return [full[number] for number in generator.permutation(len(full))]
