"""Dropped weights that live on: unseen by the model, trained by the optimiser.

A masked weight that is trained straight through has a value at every place; the model multiplies with the kept ones
only. Here the parameter holds exactly those, zeros elsewhere, at every moment but one: for the optimiser's step the
dropped values are put back, because that is what it updates. So forward, evaluation and checkpoints of the model see
the sparse weight, and parameters, module classes and state_dict keys stay as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from ..core import ModelError
from .masked_weights import MaskedWeight, local_part, zero_dropped_
from .step_hooks import before_update, loss_scale

_MANY_GRADIENTS = (
    "Live schedules take one gradient in a step, because a gradient straight through a mask is that of no loss: "
    "curvature and line searches read from several are wrong. {} runs its closure more than once. Take an optimiser "
    "such as AdamW or SGD, or a schedule without live weights."
)


def require_one_gradient(optimizer: Optimizer) -> None:
    """Raise for L-BFGS, which reads curvature from the differences of gradients, over steps as well.

    Raises:
        ModelError: says what to take instead.
    """
    if isinstance(optimizer, LBFGS):
        raise ModelError(_MANY_GRADIENTS.format("LBFGS"))


@final
class LiveWeights:
    """The values behind the masks of some weights, until `remove()`.

    Bytes: one copy of the weights. Moments of the optimiser are dense.

    Args:
        weights: what the optimiser trains of a model's masked weights; dropped places may hold values still.
        optimizer: any.
        decay: what every dropped weight adds to its own gradient, in units of the weight.
    """

    def __init__(self, weights: Sequence[MaskedWeight], optimizer: Optimizer, decay: float) -> None:
        self.weights, self._optimizer, self._decay = tuple(weights), optimizer, decay
        self._hidden = [torch.zeros_like(local_part(weight.parameter.detach())) for weight in weights]
        self._shown = True
        self._hide()
        self._handles = [
            before_update(optimizer, self._before_update, self._before_forward),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Take the hooks off and forget what is hidden; the model keeps its sparse weights."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hidden = []
        self.weights = ()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, parameters hold all their values; masks may change. Afterwards the masks of then hold."""
        self._show()
        try:
            yield
        finally:
            self._hide()

    def hidden(self) -> dict[str, Tensor]:
        """Parameter name -> its dropped values, zeros elsewhere (of this process's part, if sharded); the tensors
        themselves, for `state_dict`."""
        return {weight.name: hidden for weight, hidden in zip(self.weights, self._hidden, strict=True)}

    def _before_forward(self) -> None:
        """Refuse a second closure in one step, which finds the values shown; the model is left with sparse weights."""
        if self._shown:
            self._hide()
            raise ModelError(_MANY_GRADIENTS.format(type(self._optimizer).__name__))

    def _before_update(self) -> None:
        if self._decay:
            strength = self._decay * loss_scale(self._optimizer)
            for weight, hidden in zip(self.weights, self._hidden, strict=True):
                if weight.parameter.grad is not None:
                    local_part(weight.parameter.grad).add_(hidden, alpha=strength)
        self._show()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._hide()

    @torch.no_grad()
    def _show(self) -> None:
        if self._shown:
            return
        for weight, hidden in zip(self.weights, self._hidden, strict=True):
            local = local_part(weight.parameter.detach())
            local.copy_(torch.where(weight.kept, local, hidden))
        self._shown = True

    @torch.no_grad()
    def _hide(self) -> None:
        if not self._shown:
            return
        for weight, hidden in zip(self.weights, self._hidden, strict=True):
            kept = weight.kept
            hidden.copy_(local_part(weight.parameter.detach()))
            zero_dropped_(hidden, ~kept)
            zero_dropped_(weight.parameter.detach(), kept)
        self._shown = False
