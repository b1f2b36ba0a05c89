"""What a sparsifier is: weight, layer stats and pattern in; mask and possibly corrected weight out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from ..core import (
    AbstractPattern,
    DataError,
    Dense,
    Edge,
    LayerStats,
    PatternError,
    Registry,
    ValueType,
    parse_pattern,
    require_finite,
)
from .rounding import on_grid

# What calibration must collect: nothing, the square sum per input, or the whole gram matrix.
Needs = Literal["none", "norm", "gram"]


@final
@dataclass(frozen=True, eq=False)
class Sparsified:
    """What a sparsifier gives back.

    Attributes:
        mask: `(out, in)` bool, True = keep.
        weight: `(out, in)` in the dtype of the weight that came, zero outside the mask, possibly corrected inside.
        settings: name -> number that the method chose for this layer, for instance `damping` and `rho`.
        sparsifier: name of the one that made it, where one chose among several.
    """

    mask: Tensor
    weight: Tensor
    settings: Mapping[str, float] = field(default_factory=dict)
    sparsifier: str = ""


class AbstractSparsifier(ABC):
    """Removes weights of one layer. A sparsifier writes `choose`; the checks around it are here, once.

    Laws (checked by `sparsewright.testing.SparsifierContract`): the mask obeys the pattern and keeps exactly its
    count; the weight is zero outside the mask; reruns are bit-equal on the same machine and threads.

    Attributes:
        needs: what calibration collects for it.
        costly: whether it takes so long that `auto` does not try it.
    """

    needs: ClassVar[Needs] = "none"
    costly: ClassVar[bool] = False

    @abstractmethod
    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """Sparsify a checked weight; `stats` is there, finite and of the right size if `needs` asks for it."""

    def choose_int8(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """The same with kept weights on a grid of 255 steps per row; to the nearest, unless a method knows better."""
        found = self.choose(weight, stats, pattern, layer)
        return replace(found, weight=on_grid(found.weight).to(weight.dtype))

    def sparsify(
        self,
        weight: Tensor,
        stats: LayerStats | None,
        pattern: AbstractPattern | str,
        layer: str = "this layer",
        *,
        edge: Edge | None = None,
        value_dtype: ValueType = "fp32",
    ) -> Sparsified:
        """Choose what to keep and, if the method does so, correct what is kept.

        Args:
            weight: `(out, in)`, floating point, finite; is not changed.
            stats: moments of the layer's inputs; may be None for a sparsifier that needs none.
            pattern: where zeros may be, or its text.
            layer: how messages name the layer.
            edge: what becomes of groups and tiles that the layer's end cuts off, see `solve_mask`; None: what the
                pattern itself says.
            value_dtype: `int8` rounds what is kept in the same pass to the grid that the int8 layouts store; float32
                weights then come through packing to the last bit.

        Raises:
            PatternError: the pattern does not fit the shape, or has no solver.
            DataError: the stats that the method needs are missing or of another size.
            NumericError: weight or stats are not finite; the message names the layer.
        """
        rule = parse_pattern(pattern)
        rule = rule if edge is None else rule.with_edge(edge)
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
        return (self.choose_int8 if value_dtype == "int8" else self.choose)(weight, stats, rule, layer)

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
