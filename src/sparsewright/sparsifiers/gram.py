"""What the inputs of a layer say about its weights: the damped gram matrix and the reconstruction error."""

import weakref
from typing import cast

import torch
from torch import Tensor

from ..core import LayerStats, NumericError, require_finite

# Share of the mean diagonal that is added to the diagonal; SparseGPT's default.
DAMPING = 0.01


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


class _LastFactors:
    """The factors of one layer's gram matrix, kept while several patterns are tried on it."""

    def __init__(self) -> None:
        self._gram: weakref.ref[Tensor] | None = None
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def of(self, stats: LayerStats, layer: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        gram = cast(Tensor, stats.gram)
        known = self._gram() if self._gram is not None else None
        if known is not gram or self._kept is None or self._kept[0].device != device:
            damped = damped_gram(stats).to(device)
            self._kept = (damped, *inverse_factor(damped, layer))
            self._gram = weakref.ref(gram)
        return self._kept


_LAST = _LastFactors()


def factors(stats: LayerStats, layer: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Damped gram matrix, its inverse and the upper Cholesky factor of that, `(in, in)` float64 each.

    The last answer is kept, because a search asks for many patterns of one layer in a row; treat it as read-only.

    Raises:
        NumericError: see `inverse_factor`.
    """
    return _LAST.of(stats, layer, device)


def inverse_factor(gram: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """The inverse of a damped gram matrix and its upper Cholesky factor.

    Args:
        gram: `(in, in)` float64, symmetric.
        layer: how the message names the layer.

    Returns:
        `(inverse, U)` with `U.T @ U == inverse`, both `(in, in)` float64.

    Raises:
        NumericError: the matrix is not positive definite: it is no gram matrix.
    """
    lower, failed = torch.linalg.cholesky_ex(gram)
    if not bool(failed):
        inverse = torch.cholesky_inverse(lower)
        upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not bool(failed):
            return inverse, upper
    raise NumericError(
        f"The gram matrix of the inputs of {layer} must be positive definite, and even damped it is not. "
        "Calibrate again in float32 or better; nothing was changed."
    )


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
    lost, all_ = (float(((matrix @ gram) * matrix).sum()) for matrix in (change, whole))
    return max(0.0, lost / all_) if all_ > 0 else 0.0
