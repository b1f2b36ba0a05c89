"""The model's own forward pass with its blocks taken out: what each block is called with, and what follows the last.

Every block is replaced by one that hands its input on, so that only what stands around the blocks has to be in memory.
Positions, masks and rotary tables that a model computes once and passes to its blocks by keyword are met so as the
model itself makes them, whatever model it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from ...core import ModelError
from ...models import Batch
from ...models.data import fitting
from ...models.flow import Call
from ...models.structure import Block
from .skeleton import Skeleton
from .source import StoredTensors


class _StopForwardError(Exception):
    """Ends a forward pass once every block was met."""


@final
class SkippedBlocks:
    """The model without its blocks.

    Args:
        skeleton: parameters of the model, read while they are needed.
        stored: where they are read from.
        blocks: all that are taken out.

    Raises:
        ModelError: see `capture`.
    """

    def __init__(self, skeleton: Skeleton, stored: StoredTensors, blocks: Sequence[Block]) -> None:
        self._skeleton = skeleton
        self._stored = stored
        self._blocks = list(blocks)
        # What a block gives beside its hidden state, and whether that can differ from batch to batch.
        self._output: tuple[Any, ...] | None = None
        self._changes = True

    def capture(self, batches: Sequence[Batch]) -> tuple[list[Block], list[dict[str, Call]]]:
        """What each block is called with.

        Returns:
            The blocks in the order in which they run; per batch, block name -> call. Only the first block's call holds
            its hidden state.

        Raises:
            ModelError: the blocks do not feed one another in one chain, each called once per batch.
            DataError: the model fails on a batch.
        """
        order: list[str] = []
        captured: list[dict[str, Call]] = []
        # What is read before the blocks is read once for all batches.
        with self._around(keep=True):
            for number, batch in enumerate(batches):
                calls: dict[str, Call] = {}
                with self._replaced(partial(self._record, calls, [])), _until_stopped(), fitting(number):
                    batch.run(self._skeleton.model)
                names = list(calls)
                if len(names) != len(self._blocks) or (order and names != order):
                    missing = next((name for name, _ in self._blocks if name not in calls), names[0])
                    raise ModelError(
                        f"Streaming needs every batch to run every block, but {missing} was left out. "
                        "Load the model and call sparsify_ instead."
                    )
                order = names
                captured.append(calls)
        by_name = dict(self._blocks)
        return [(name, by_name[name]) for name in order], captured

    def run(self, batch: Batch, hidden: Tensor, last: str) -> Any:
        """Run what stands around the blocks; the last block gives `hidden`, as if all of them had run."""
        with self._around(keep=False), self._replaced(partial(self._hand_on, hidden, last)):
            return batch.run(self._skeleton.model)

    def _record(self, calls: dict[str, Call], handed: list[Tensor], name: str, *args: Any, **kwargs: Any) -> Any:
        call = Call.of(args, kwargs, with_hidden=True)
        first = not calls
        if name in calls or not isinstance(call.hidden, Tensor) or (not first and call.hidden is not handed[-1]):
            raise ModelError(
                f"Streaming needs blocks that feed one another, each called once, but {name} is not called with what "
                "the block before it gave. Load the model and call sparsify_ instead."
            )
        calls[name] = call
        if first and self._changes:
            self._output = self._real_output(name, args, kwargs)
            self._changes = any(isinstance(value, Tensor) for value in self._output or ())
        hidden = call.hidden
        if not first:
            call.hidden = None
        if len(calls) == len(self._blocks):
            raise _StopForwardError
        # Another object, by which the next block is known to follow; a copy, because a model may write into it.
        handed[:] = [hidden.clone()]
        return _with_hidden(self._output, handed[0])

    def _hand_on(self, hidden: Tensor, last: str, name: str, *args: Any, **kwargs: Any) -> Any:
        given = hidden if name == last else Call.of(args, kwargs, with_hidden=True).hidden
        return _with_hidden(self._output, given.clone())

    def _real_output(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """What the first block gives beside its hidden state, for the blocks after it; None: it gives a tensor."""
        names = self._skeleton.inside(name)
        self._skeleton.fill(names, self._stored)
        try:
            block = dict(self._blocks)[name]
            output = type(block).forward(block, *args, **kwargs)
        finally:
            self._skeleton.release(names)
        return tuple(output[1:]) if isinstance(output, tuple | list) else None

    @contextmanager
    def _replaced(self, stand_in: Callable[..., Any]) -> Iterator[None]:
        """Calls of a block go to `stand_in(name, ...)`; the modules stay, because a model asks them for attributes."""
        for name, block in self._blocks:
            block.__dict__["forward"] = partial(stand_in, name)
        try:
            yield
        finally:
            for _, block in self._blocks:
                block.__dict__.pop("forward", None)

    @contextmanager
    def _around(self, keep: bool) -> Iterator[None]:
        """Modules outside the blocks read their parameters when they are called.

        Args:
            keep: let them go at the end of the block, and not after each call.
        """
        hooks = []
        held: list[str] = []
        for module, names in self._readers():

            def before(module: nn.Module, args: Any, names: list[str] = names) -> None:
                if names[0] not in held:
                    self._skeleton.fill(names, self._stored)
                    held.extend(names)

            def after(module: nn.Module, args: Any, output: Any, names: list[str] = names) -> None:
                if not keep:
                    self._skeleton.release(names)
                    held[:] = [name for name in held if name not in names]

            hooks.append(module.register_forward_pre_hook(before, prepend=True))
            hooks.append(module.register_forward_hook(after))
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
            raise ModelError(
                "Streaming needs a model that uses its parameters by calling the module that holds them, and this one "
                f"does not ({' '.join(str(error).split())[:200]}). Load the model and call sparsify_ instead."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            self._skeleton.release(held)

    def _readers(self) -> list[tuple[nn.Module, list[str]]]:
        """Modules outside the blocks, and the state that is read for each: the largest ones without a block inside."""
        blocks = [name for name, _ in self._blocks]
        outside = self._skeleton.outside(blocks)
        readers: dict[str, list[str]] = {}
        for name in outside:
            parts = name.split(".")[:-1]
            paths = [".".join(parts[:depth]) for depth in range(len(parts) + 1)]
            owner = paths[-1]
            for path in paths:
                module = self._skeleton.model.get_submodule(path)
                has_block = any(not path or block.startswith(f"{path}.") for block in blocks)
                # Nobody calls a list; its members are called.
                if not has_block and not isinstance(module, nn.ModuleList | nn.ModuleDict):
                    owner = path
                    break
            readers.setdefault(owner, []).append(name)
        return [(self._skeleton.model.get_submodule(path), names) for path, names in readers.items()]


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        with torch.no_grad():
            yield
    except _StopForwardError:
        return


def _with_hidden(others: tuple[Any, ...] | None, hidden: Tensor) -> Any:
    """A block's output: a tensor, or a tuple of which the hidden state is the first."""
    return hidden if others is None else (hidden, *others)
