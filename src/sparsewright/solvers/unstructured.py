"""Exact unstructured masks: the best scores anywhere, in one layer or over many."""

from collections.abc import Mapping
from typing import cast, final

import torch
from torch import Tensor

from ..core import AbstractPattern, PatternError, Unstructured, require_finite
from .base import AbstractMaskSolver, Count, solvers
from .ranking import top_n


@final
@solvers.register("unstructured")
class UnstructuredTopN(AbstractMaskSolver):
    """Keep the `round(density * out * in)` highest scores of the layer; ties go to the lower flat index."""

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Densities only."""
        return [] if isinstance(pattern, Unstructured) else ["it solves densities such as 10%"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Exactly `Unstructured.kept_weights` of the layer, or its positive ones at most."""
        rule = cast(Unstructured, pattern)
        kept = rule.kept_weights((scores.shape[0], scores.shape[1]))
        mask = top_n(scores.reshape(-1), kept).view(scores.shape)
        return mask if count == "exactly" else mask & (scores > 0)


def solve_global(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Spread one density over layers: keep the highest scores wherever they are.

    Scores of different layers are compared as they come; scale them first if their layers are not alike. Ties go to
    the earlier layer, then to the lower index. A layer may end up with nothing kept.

    Args:
        scores: layer name -> `(out, in)`, floating point, finite; higher means keep.
        density: kept / all over all layers together, in (0, 1].

    Returns:
        layer name -> `(out, in)` bool; exactly `round(density * all)` marks in total, at least one.

    Raises:
        PatternError: the density is out of range, or there are no scores.
        NumericError: a score is not finite; the message names layer and position.
    """
    if not 0.0 < density <= 1.0 or not scores:
        raise PatternError(
            f"A global density lies in (0, 1] and needs at least one layer, got {density} for {len(scores)} layers."
        )
    for name, layer in scores.items():
        require_finite(layer, f"scores of {name}")
    flat = torch.cat([layer.detach().reshape(-1) for layer in scores.values()])
    mask = top_n(flat, max(1, round(density * flat.numel())))
    parts = mask.split([layer.numel() for layer in scores.values()])
    return {name: part.view(layer.shape) for (name, layer), part in zip(scores.items(), parts)}
