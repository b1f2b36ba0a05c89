"""What the inputs of a layer say about its weights: the damped gram matrix, its factors, the reconstruction error."""

import weakref
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor

from ..core import LayerStats, NumericError, require_finite

# Share of the mean diagonal that is added to the diagonal; SparseGPT's default.
DAMPING = 0.01
# How often it is raised tenfold where the matrix cannot be factorised.
_RAISES = 3


def damped_gram(stats: LayerStats, damping: float = DAMPING) -> Tensor:
    """Gram matrix per token with `damping` times its mean diagonal added to the diagonal.

    The addition makes it positive definite; inputs that never fired get the smallest curvature instead of none.

    Returns:
        `(in, in)` float64.
    """
    gram = cast(Tensor, stats.gram).double() / stats.tokens
    ridge = damping * float(gram.diagonal().mean())
    # Inputs that are all zero tell nothing: then every weight counts alike.
    return gram + (ridge or 1.0) * torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)


@final
@dataclass(frozen=True, eq=False)
class Factors:
    """A damped gram matrix and what a column sweep needs of it, `(in, in)` float64 each; treat them as read-only.

    Attributes:
        gram: per token, damped.
        inverse: of `gram`.
        upper: upper Cholesky factor of the inverse: `upper.T @ upper == inverse`.
        damping: share of the mean diagonal that it took to factorise.
    """

    gram: Tensor
    inverse: Tensor
    upper: Tensor
    damping: float


class _LastFactors:
    """The factors of one layer's gram matrix, kept while several patterns are tried on it."""

    def __init__(self) -> None:
        self._gram: weakref.ref[Tensor] | None = None
        self._kept: Factors | None = None

    def of(self, stats: LayerStats, layer: str, device: torch.device) -> Factors:
        gram = cast(Tensor, stats.gram)
        known = self._gram() if self._gram is not None else None
        if known is not gram or self._kept is None or self._kept.gram.device != device:
            self._kept = _factorise(stats, layer, device)
            self._gram = weakref.ref(gram)
        return self._kept


_LAST = _LastFactors()


def factors(stats: LayerStats, layer: str, device: torch.device) -> Factors:
    """The damped gram matrix of a layer's inputs, factorised.

    Damping starts at `DAMPING` and is raised tenfold, three times at most, while the matrix is not positive definite.
    The last answer is kept, because a search asks for many patterns of one layer in a row.

    Args:
        stats: with gram.
        layer: how the message names the layer.
        device: where the sweep runs.

    Raises:
        NumericError: even the largest damping does not help: it is no gram matrix.
    """
    return _LAST.of(stats, layer, device)


def _factorise(stats: LayerStats, layer: str, device: torch.device) -> Factors:
    for damping in (DAMPING * 10**raised for raised in range(_RAISES + 1)):
        gram = damped_gram(stats, damping).to(device)
        lower, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed):
            continue
        inverse = torch.cholesky_inverse(lower)
        upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not bool(failed):
            return Factors(gram, inverse, upper, damping)
    raise NumericError(
        f"The gram matrix of the inputs of {layer} must be positive definite, and even damped by {damping:g} times its "
        "mean diagonal it is not. Calibrate again in float32 or better; nothing was changed."
    )


def squared_error(change: Tensor, gram: Tensor) -> float:
    """`trace(change G change^T)` of an `(out, in)` change of weights, in the dtype of both."""
    return float(((change @ gram) * change).sum())


def reconstruction_error(dense: Tensor, sparse: Tensor, stats: LayerStats) -> float:
    """Share of the layer's output energy that is lost: `trace(D G D^T) / trace(W G W^T)` with `D = dense - sparse`.

    Args:
        dense: `(out, in)` before.
        sparse: `(out, in)` after.
        stats: with the gram matrix of the inputs.

    Returns:
        0 for no change, 1 for a layer that puts out nothing; 0 if the dense layer puts out nothing itself.
    """
    gram = cast(Tensor, stats.gram).double()
    require_finite(gram, "gram matrix")
    change, whole = dense.double() - sparse.double(), dense.double()
    lost, all_ = (squared_error(matrix, gram) for matrix in (change, whole))
    return max(0.0, lost / all_) if all_ > 0 else 0.0
