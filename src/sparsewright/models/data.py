"""Data that a model is run on: batches in one form, and named splits of which the test one stays shut."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core import DataError

# A generator is read once and kept; this many batches are more than calibration can use.
MAX_BATCHES = 4096

ForwardLoop = Callable[[nn.Module], Any]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Arguments of one call of the model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """Call the model."""
        return model(*self.args, **self.kwargs)

    @property
    def values(self) -> list[Any]:
        """All arguments, those by position first."""
        return [*self.args, *self.kwargs.values()]

    @property
    def token_mask(self) -> Tensor | None:
        """`(batch, tokens)` bool, False on padding, where the batch carries a two-dimensional `attention_mask`."""
        mask = self.kwargs.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def as_batch(item: Any) -> Batch:
    """One item of the data as arguments: a dict (any mapping) by keyword, a tuple or list by position, a tensor alone.

    Raises:
        DataError: none of these.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        return Batch(kwargs=dict(item))
    if isinstance(item, tuple | list):
        return Batch(args=tuple(item))
    if isinstance(item, Tensor):
        return Batch(args=(item,))
    raise DataError(
        f"A batch is a tensor, a tuple of arguments or a dict of keyword arguments, got {type(item).__name__}. "
        "Tokenise text first."
    )


@contextmanager
def fitting(number: int) -> Iterator[None]:
    """Around the model's own code: what it raises becomes a DataError that names the batch.

    Args:
        number: of the batch, from 0.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        told = " ".join(str(error).split())
        # A full memory is not the batch's fault, and tensors without values are not either.
        if isinstance(error, torch.OutOfMemoryError | NotImplementedError) or "meta" in told:
            raise
        raise DataError(
            f"Batch {number} does not fit the model ({type(error).__name__}: {told[:200]}). "
            "Give batches that the model takes as it stands."
        ) from error


def batches_of(data: Any, model: nn.Module | None = None, cap: int = MAX_BATCHES) -> list[Batch]:
    """Read data into a list, once.

    Args:
        data: an iterable of tensors, tuples or dicts; `Data` (its calibration split is taken); or a callable
            `forward_loop(model)` that runs the model itself.
        model: run once to record its inputs where `data` is a callable.
        cap: at most this many batches are kept; a warning tells when there were more.

    Raises:
        DataError: nothing came, or the data are of another form.
    """
    if isinstance(data, Data):
        data = data.calibration
    if isinstance(data, Tensor | str | bytes | Mapping):
        raise DataError(
            f"Data are an iterable of batches, got one {type(data).__name__}. Put it into a list: data=[batch]."
        )
    if callable(data) and not isinstance(data, Iterable):
        if model is None:
            raise DataError("A forward loop needs its model. Pass an iterable of batches here.")
        batches = _recorded(data, model, cap)
    elif isinstance(data, Iterable):
        batches = [as_batch(item) for item in itertools.islice(data, cap + 1)]
    else:
        raise DataError(f"Data are an iterable of batches or a callable forward_loop(model), got {data!r}.")
    if not batches:
        raise DataError("The data hold no batch. A generator can be read only once: pass a list, or a fresh generator.")
    if len(batches) > cap:
        warnings.warn(f"Only the first {cap} batches are used.", stacklevel=2)
        batches = batches[:cap]
    return batches


def _recorded(loop: ForwardLoop, model: nn.Module, cap: int) -> list[Batch]:
    """What a forward loop passes to the model."""
    seen: list[Batch] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(seen) <= cap:
            seen.append(Batch(args, dict(kwargs)))

    hook = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.no_grad():
            loop(model)
    finally:
        hook.remove()
    return seen


@final
class Data:
    """Named splits. The test split raises until `open_test()`, so that no search can look at it by accident.

    Args:
        calibration: data for layer statistics and recovery; each split in one of the forms of `batches_of`.
        validation: data by which plans are compared.
        test: data for the figure at the end.
    """

    def __init__(self, calibration: Any = None, validation: Any = None, test: Any = None) -> None:
        self._splits = {"calibration": calibration, "validation": validation, "test": test}
        self._test_open = False
        for name, split in self._splits.items():
            # A generator would be empty on its second reading.
            if split is not None and iter_once(split):
                self._splits[name] = batches_of(split)

    def _split(self, name: str) -> Any:
        split = self._splits[name]
        if split is None:
            raise DataError(f"There is no {name} split. Pass Data({name}=...).")
        return split

    @property
    def calibration(self) -> Any:
        """The calibration split as it was given (a generator as a list)."""
        return self._split("calibration")

    @property
    def validation(self) -> Any:
        """The validation split as it was given (a generator as a list)."""
        return self._split("validation")

    @property
    def test(self) -> Any:
        """The test split.

        Raises:
            DataError: before `open_test()`.
        """
        if not self._test_open:
            raise DataError(
                "The test split is opened once, after the search and sparsification have finished. "
                "Use `validation` until then, or call open_test() at the end."
            )
        return self._split("test")

    def open_test(self) -> None:
        """Allow `.test` from now on."""
        self._test_open = True


def iter_once(data: Any) -> bool:
    """Whether data are used up by reading them."""
    return isinstance(data, Iterable) and iter(data) is data
