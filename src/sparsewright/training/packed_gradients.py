"""Data parallel training of packed weights: the gradients of their kept values travel, in one row per backward pass.

DDP lays a gradient out by the shape of its parameter, which a packed one does not have in memory, and so has to leave
it alone. Their gradients are averaged here when the backward pass ends, which is when DDP has its own ones ready.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable

from ..nn import SparseTensor
from ..nn.trainable import with_values
from .traffic import GradientTraffic


@final
class PackedGradients:
    """Averages the gradients of packed weights over processes after every backward pass that reaches one of them.

    Every process must reach one in the same passes, as DDP asks of all parameters; which of them it reaches may differ.

    Args:
        weights: name -> parameter that trains; the same order and the same places on every process.
        group: the processes that share gradients.
        is_due: whether the present backward pass is to be shared (not inside `no_sync()`).
        traffic: name -> bytes, counted here.
    """

    def __init__(
        self,
        weights: Mapping[str, SparseTensor],
        group: Any,
        is_due: Callable[[], bool],
        traffic: MutableMapping[str, GradientTraffic],
    ) -> None:
        self._weights = dict(weights)
        self._group, self._is_due, self._traffic = group, is_due, traffic
        self._waiting = False
        for weight in self._weights.values():
            weight.register_post_accumulate_grad_hook(self._note)

    def _note(self, _: Tensor) -> None:
        if not self._waiting and self._is_due():
            self._waiting = True
            # Not at once: the order in which gradients come to be may differ between processes.
            Variable._execution_engine.queue_callback(self._share)

    @torch.no_grad()
    def _share(self) -> None:
        self._waiting = False
        weights = list(self._weights.items())
        places = [weight.packed.tensors["values"] for _, weight in weights]
        lengths = [values.numel() for values in places]
        row = places[0].new_zeros(len(weights) + sum(lengths))
        # In front, one number per weight: whether any process has a gradient of it.
        reached, rest = row[: len(weights)], row[len(weights) :].split(lengths)
        for place, ((name, weight), piece) in enumerate(zip(weights, rest, strict=True)):
            if isinstance(weight.grad, SparseTensor):
                reached[place] = 1.0
                piece.copy_(weight.grad.packed.tensors["values"].reshape(-1))
            counted = self._traffic.setdefault(name, GradientTraffic())
            counted.sent_bytes += (piece.numel() + 1) * piece.element_size()
            counted.dense_bytes += weight.numel() * piece.element_size()
        row.div_(dist.get_world_size(self._group))
        dist.all_reduce(row, group=self._group)
        for (_, weight), anybody, piece, values in zip(weights, reached.tolist(), rest, places, strict=True):
            if isinstance(weight.grad, SparseTensor):
                weight.grad.packed.tensors["values"].copy_(piece.view_as(values))
            elif anybody:
                weight.grad = weight.like(with_values(weight.packed, piece.view_as(values).clone()))
