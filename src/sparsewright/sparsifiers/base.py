"""What a sparsifier is: weight, layer stats and pattern in; mask and possibly corrected weight out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from ..core import AbstractPattern, DataError, Dense, LayerStats, PatternError, Registry, parse_pattern, require_finite

# What calibration must collect: nothing, the square sum per input, or the whole gram matrix.
Needs = Literal["none", "norm", "gram"]


@final
@dataclass(frozen=True, eq=False)
class Sparsified:
    """What a sparsifier gives back.

    Attributes:
        mask: `(out, in)` bool, True = keep.
        weight: `(out, in)` in the dtype of the weight that came, zero outside the mask, possibly corrected inside.
    """

    mask: Tensor
    weight: Tensor


class AbstractSparsifier(ABC):
    """Removes weights of one layer. A sparsifier writes `choose`; the checks around it are here, once.

    Laws (checked by `sparsewright.testing.SparsifierContract`): the mask obeys the pattern and keeps exactly its
    count; the weight is zero outside the mask; reruns are bit-equal on the same machine and threads.
    """

    needs: ClassVar[Needs] = "none"

    @abstractmethod
    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """Sparsify a checked weight; `stats` is there, finite and of the right size if `needs` asks for it."""

    def sparsify(
        self,
        weight: Tensor,
        stats: LayerStats | None,
        pattern: AbstractPattern | str,
        layer: str = "this layer",
    ) -> Sparsified:
        """Choose what to keep and, if the method does so, correct what is kept.

        Args:
            weight: `(out, in)`, floating point, finite; is not changed.
            stats: moments of the layer's inputs; may be None for a sparsifier that needs none.
            pattern: where zeros may be, or its text.
            layer: how messages name the layer.

        Raises:
            PatternError: the pattern does not fit the shape, or has no solver.
            DataError: the stats that the method needs are missing or of another size.
            NumericError: weight or stats are not finite; the message names the layer.
        """
        rule = parse_pattern(pattern)
        if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
            raise PatternError(
                f"A weight to sparsify is a floating-point matrix (out, in), got {tuple(weight.shape)} {weight.dtype} "
                f"for {layer}. Flatten a convolution to (out, in*kh*kw) first."
            )
        weight = weight.detach()
        rule.require_fit((weight.shape[0], weight.shape[1]), layer)
        require_finite(weight, f"weight of {layer}")
        self._check_stats(stats, weight.shape[1], layer)
        if isinstance(rule, Dense):
            return Sparsified(torch.ones_like(weight, dtype=torch.bool), weight.clone())
        return self.choose(weight, stats, rule, layer)

    def _check_stats(self, stats: LayerStats | None, in_: int, layer: str) -> None:
        if self.needs == "none":
            return
        if stats is None or (self.needs == "gram" and stats.gram is None):
            raise DataError(
                f"{type(self).__name__} needs calibration data ({self.needs} of the inputs) for {layer}, got none. "
                "Pass calibration data, or use the sparsifier 'magnitude'."
            )
        wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {"square sum": (stats.square_sum, (in_,))}
        if self.needs == "gram":
            wanted["gram"] = (stats.gram, (in_, in_))
        for what, (tensor, shape) in wanted.items():
            if tensor is None or tuple(tensor.shape) != shape:
                came = None if tensor is None else tuple(tensor.shape)
                raise DataError(f"The {what} of {layer} must be of shape {shape}, got {came}. Calibrate this model.")
            require_finite(tensor, f"{what} of the inputs of {layer}")


sparsifiers: Registry[AbstractSparsifier] = Registry("sparsifiers", AbstractSparsifier)
