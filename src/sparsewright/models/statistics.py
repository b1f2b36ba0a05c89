"""Collect layer statistics: moments of what reaches each layer, by hooks that always come off again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import DataError, LayerStats, NumericError, require_finite
from ..sparsifiers import Needs
from .data import Batch, batches_of
from .layer_ref import LayerRef
from .modes import quiet

_ROWS = 128


class _Moments:
    """Sums over the inputs of one layer: float32 products of a batch, added up in float64."""

    def __init__(self, in_: int, with_gram: bool) -> None:
        self.tokens = 0
        self.total = torch.zeros(in_, dtype=torch.float64)
        self.square_sum = torch.zeros(in_, dtype=torch.float64)
        self.gram = torch.zeros(in_, in_, dtype=torch.float64) if with_gram else None

    def add(self, tokens: int, total: Tensor, square_sum: Tensor, gram: Tensor | None) -> None:
        self.tokens += tokens
        self.total += total
        self.square_sum += square_sum
        if self.gram is not None and gram is not None:
            # Mixed types are added through a copy in the wider one: a few rows at a time it stays small.
            for mine, other in zip(self.gram.split(_ROWS), gram.split(_ROWS)):
                mine += other


class Collector:
    """Hooks on layers; while it is open every call of a layer adds to its moments.

    Layers that read the same tensor one after the other (query, key, value) share the work of one product.
    """

    def __init__(self, layers: Sequence[LayerRef], needs: Needs) -> None:
        self.needs = needs
        self.layers = {ref.name: ref for ref in layers}
        self._moments = {ref.name: _Moments(ref.shape[1], needs == "gram") for ref in layers}
        self._token_mask: Tensor | None = None
        self._last: tuple[Tensor, int, tuple[Any, ...]] | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hooks are on inside the block and off after it, whatever happens."""
        hooks = [
            module.register_forward_pre_hook(self._hook(ref), with_kwargs=True)
            for ref in self.layers.values()
            for module in ref.holders
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._last = None

    def batch(self, batch: Batch) -> None:
        """Tell which batch runs next: its padding is left out."""
        self._token_mask = batch.token_mask
        self._last = None

    def stats(self) -> dict[str, LayerStats]:
        """Layer name -> stats.

        Raises:
            DataError: a layer was never reached.
        """
        silent = [name for name, moments in self._moments.items() if moments.tokens == 0]
        if silent:
            raise DataError(
                f"Calibration never reached {silent[0]}"
                + (f" and {len(silent) - 1} more layers" if len(silent) > 1 else "")
                + ". Give data that uses them, or exclude them."
            )
        return {
            name: LayerStats(moments.tokens, moments.total / moments.tokens, moments.square_sum, moments.gram)
            for name, moments in self._moments.items()
        }

    def _hook(self, ref: LayerRef) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(inputs, Tensor):
                self._see(ref, inputs)

        return before

    def _see(self, ref: LayerRef, inputs: Tensor) -> None:
        last = self._last
        # An operation in place between two readers shows in the version.
        if last is not None and last[0] is inputs and last[1] == inputs._version and ref.kind != "conv2d":
            products = last[2]
        else:
            products = self._products(ref, inputs)
            self._last = (inputs, inputs._version, products) if ref.kind != "conv2d" else None
        self._moments[ref.name].add(*products)

    def _products(self, ref: LayerRef, inputs: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            rows = ref.view.rows(inputs.detach(), ref.module)
            mask = self._token_mask
            leading = ref.view.token_shape(inputs)
            if mask is not None and leading is not None and leading in (tuple(mask.shape), (mask.numel(),)):
                rows = rows[mask.reshape(-1).to(rows.device)]
            rows = rows.to(torch.float32)
            # In float32 until it is added, which is exact in float64: a large layer's would take twice as much.
            gram = (rows.T @ rows).cpu() if self.needs == "gram" else None
            total = rows.sum(0, dtype=torch.float64).cpu()
            # Of the gram the diagonal is the square sum; both in one product where it is asked for anyway.
            square_sum = (
                gram.diagonal().double() if gram is not None else rows.square().sum(0, dtype=torch.float64).cpu()
            )
            if not bool(torch.isfinite(square_sum).all()):
                _name_the_fault(rows, ref.name)
        return rows.shape[0], total, square_sum, gram


def _name_the_fault(rows: Tensor, layer: str) -> None:
    require_finite(rows, f"input (token, column) of {layer} in calibration")
    raise NumericError(
        f"The squares of the inputs of {layer} overflow float32. Scale the model's inputs or exclude the layer."
    )


def layer_statistics(
    model: nn.Module, data: Any, layers: Sequence[LayerRef], needs: Needs = "gram"
) -> dict[str, LayerStats]:
    """Statistics of all layers from one pass over the model as it is (the cheap form, for sensitivity).

    Args:
        model: run in eval mode without gradients; its weights and modes are not changed.
        data: see `batches_of`.
        layers: which layers to watch.
        needs: `norm` for sums and square sums, `gram` for the whole `X^T X`; `none` gives an empty result.

    Returns:
        Layer name -> stats. Padding is left out where a batch has an `attention_mask`.

    Raises:
        DataError: no data, or data that never reach a layer.
        NumericError: an input is NaN or infinite; the message names layer and position.
    """
    if needs == "none" or not layers:
        return {}
    collector = Collector(layers, needs)
    with quiet(model), collector.open():
        for batch in batches_of(data, model):
            collector.batch(batch)
            batch.run(model)
    return collector.stats()
