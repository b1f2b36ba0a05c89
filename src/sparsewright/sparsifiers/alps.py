"""ALPS: mask and weights together, by splitting the layer problem into least squares and projection (ADMM).

Source: Meng et al. 2024, arXiv:2406.07831. Minimises `trace((D - W) G (D - W)^T)` over D that obeys the pattern: B
solves the unconstrained problem with a pull towards D, D is the best lawful copy of B, and a rising penalty brings
them together. Starts from SparseGPT and never gives back worse; measured on a sentence encoder at half density the
error falls by another sixth, at about three times the time.
"""

from typing import ClassVar, cast, final

import torch
from torch import Tensor

from ..core import AbstractPattern, LayerStats, NumericError
from ..solvers import solve_mask
from .base import AbstractSparsifier, Needs, Sparsified, sparsifiers
from .gram import damped_gram
from .reconstruct import solve_kept
from .sparsegpt import SparseGPT

# Penalty at the start and its growth; with twenty rounds within 2 % of the error that sixty slower ones reach.
_PENALTY = 0.03
_GROWTH = 1.3
_ROUNDS = 20


@final
@sparsifiers.register("alps")
class ALPS(AbstractSparsifier):
    """Alternating least squares and projection onto the pattern; kept weights are corrected."""

    needs: ClassVar[Needs] = "gram"

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        """Start from SparseGPT, alternate, solve for the kept weights, and give back the better of the two."""
        start = SparseGPT().choose(weight, stats, pattern, layer)
        gram = damped_gram(cast(LayerStats, stats)).to(weight.device)
        dense = weight.double()
        mask, split = _alternate(dense, start.weight.double(), gram, pattern, layer)
        solved = solve_kept(split, mask, dense, gram)
        if _error(dense, solved, gram) < _error(dense, start.weight.double(), gram):
            return Sparsified(mask, solved.to(weight.dtype))
        return start


def _error(dense: Tensor, sparse: Tensor, gram: Tensor) -> float:
    change = dense - sparse
    return float(((change @ gram) * change).sum())


def _alternate(
    dense: Tensor, start: Tensor, gram: Tensor, pattern: AbstractPattern, layer: str
) -> tuple[Tensor, Tensor]:
    """Mask and lawful weight after all rounds, `(out, in)` each; the weight in float64."""
    # Inputs of unit energy and weights of unit size: then one penalty suits every layer, and float32 is enough.
    energy = gram.diagonal().sqrt()
    size = float((dense * energy).square().mean().sqrt()) or 1.0
    scale = energy / size
    values, vectors = torch.linalg.eigh(gram / energy / energy[:, None])
    pull = ((dense * scale) @ vectors * values).float()
    values, vectors = values.float(), vectors.float()
    back = vectors.T.contiguous()
    lawful = (start * scale).float()
    multiplier = torch.zeros_like(lawful)
    mask = lawful != 0
    penalty = _PENALTY
    for _ in range(_ROUNDS):
        free = ((pull + (penalty * lawful - multiplier) @ vectors) / (values + penalty)) @ back
        wanted = free + multiplier / penalty
        try:
            mask = solve_mask(wanted.square(), pattern)
        except NumericError as error:
            raise NumericError(
                f"The alternation diverged for {layer}: {error} Use the sparsifier 'sparsegpt'."
            ) from error
        lawful = wanted * mask
        multiplier += penalty * (free - lawful)
        penalty *= _GROWTH
    return mask, lawful.double() / scale
