"""Convolutions timed as they will run: a layer's own weight, packed beside dense, on its inputs in the model.

A profile counts tokens and knows linear layers only; a convolution's dense time also depends on kernel, stride and
padding, for which dense libraries have code of their own.
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from ..layouts import PackedWeight
from ..models import LayerRef
from .model_time import require_runs
from .timing import interleave, speedup

# A few dozen rounds of layers of a millisecond or less.
_SECONDS = 0.3


@final
class ConvolutionTimer:
    """Inputs of a model's convolutions, and what packing gains on them.

    Args:
        model: run once.
        batch: one input, see `run_model`.
        refs: layers of the model; those that are no convolutions are left out.
        threads: intra-op threads of the timing.

    Raises:
        DataError: the model does not run on the batch.
    """

    def __init__(self, model: nn.Module, batch: Any, refs: Sequence[LayerRef], threads: int = 1) -> None:
        self._threads = threads
        self._inputs: dict[str, Tensor] = {}
        handles = [
            ref.module.register_forward_pre_hook(self._remember(ref.name)) for ref in refs if ref.kind == "conv2d"
        ]
        try:
            require_runs(model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _remember(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                self._inputs[name] = inputs[0].clone()

        return hook

    def ratio(self, ref: LayerRef, packed: PackedWeight) -> float | None:
        """Packed seconds / dense seconds of one layer; None where no input of it is known."""
        x = self._inputs.get(ref.name)
        if x is None:
            return None
        layer: Any = ref.module
        dense, sparse = layer.weight.detach(), ref.as_tensor(packed)
        samples = interleave(
            {
                "dense": lambda: layer._conv_forward(x, dense, layer.bias),
                "packed": lambda: layer._conv_forward(x, sparse, layer.bias),
            },
            threads=self._threads,
            rounds=(5, 25),
            seconds=_SECONDS,
        )
        return 1.0 / speedup(samples["packed"], samples["dense"]).value
