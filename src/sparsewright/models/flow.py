"""How data flow from block to block: which block feeds which, and what each one was called with.

A block is chained to the one before it when its first tensor *is* that block's output. Chained blocks are rerun one
by one from their inputs; where the chain breaks (stages with something between them, an encoder before a decoder) the
inputs are captured again from the whole model, which by then holds the sparsified blocks in front.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from .data import Batch, fitting
from .structure import Block


class _StopForwardError(Exception):
    """Ends a forward pass once everything needed was seen."""


@final
@dataclass(eq=False)
class Call:
    """What one block is called with in one batch; `hidden` is its first tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Any

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any], with_hidden: bool) -> "Call":
        """Take the arguments apart."""
        if args:
            return Call(args[1:], kwargs, args[0] if with_hidden else None)
        # Called by keywords only: the first one is the hidden state, by the custom of every block.
        rest = dict(kwargs)
        name = next(iter(rest))
        hidden = rest.pop(name)
        return Call((), {_FIRST: name, **rest}, hidden if with_hidden else None)

    def run(self, block: nn.Module) -> Any:
        """Call the block; returns its output's first tensor."""
        kwargs = dict(self.kwargs)
        name = kwargs.pop(_FIRST, None)
        output = block(self.hidden, *self.args, **kwargs) if name is None else block(**{name: self.hidden}, **kwargs)
        return first_of(output)


_FIRST = "__first__"


def first_of(output: Any) -> Any:
    """The hidden state in a block's output: itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple | list) and output else output


def chains(model: nn.Module, blocks: Sequence[Block], batch: Batch) -> list[list[Block]]:
    """Runs of blocks in which each feeds the next, in run order, learned from one batch.

    Blocks that a batch calls never or several times are left out: their layers are calibrated on the whole model.
    """
    calls: list[tuple[Block, Any]] = []
    outputs: dict[str, Any] = {}
    hooks = []
    for block in blocks:

        def before(module: nn.Module, args: Any, kwargs: Any, block: Block = block) -> None:
            calls.append((block, Call.of(args, kwargs, True).hidden if args or kwargs else None))

        def after(module: nn.Module, args: Any, output: Any, block: Block = block) -> None:
            outputs[block[0]] = first_of(output)

        hooks.append(block[1].register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(block[1].register_forward_hook(after))
    try:
        with fitting(0):
            batch.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    names = [block[0] for block, _ in calls]
    found: list[list[Block]] = []
    for block, hidden in calls:
        if names.count(block[0]) != 1 or not isinstance(hidden, Tensor):
            continue
        if found and outputs.get(found[-1][-1][0]) is hidden:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def capture(model: nn.Module, chain: Sequence[Block], batches: Sequence[Batch]) -> list[dict[str, Call]]:
    """Per batch, block name -> call, for one chain; only the first block's call holds its hidden state."""
    captured: list[dict[str, Call]] = []
    last = chain[-1][0]
    hooks = []
    for name, module in chain:

        def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            captured[-1][name] = Call.of(args, kwargs, with_hidden=name == chain[0][0])
            if name == last:
                raise _StopForwardError

        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        for number, batch in enumerate(batches):
            captured.append({})
            try:
                with torch.no_grad(), fitting(number):
                    batch.run(model)
            except _StopForwardError:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return captured
