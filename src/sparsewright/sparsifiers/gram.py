"""What the inputs of a layer say about its weights: the damped gram matrix, its factors, the reconstruction error."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor

from ..core import LayerStats, NumericError, require_finite

# Share of the mean diagonal that is added to the diagonal; SparseGPT's default.
DAMPING = 0.01
# How often it is raised tenfold where the matrix cannot be factorised.
_RAISES = 3

# Rows that are converted at a time.
_ROWS = 128


def damped_gram(stats: LayerStats, damping: float = DAMPING, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gram matrix per token with `damping` times its mean diagonal added to the diagonal.

    The addition makes it positive definite; inputs that never fired get the smallest curvature instead of none.

    Args:
        stats: with the gram matrix.
        damping: see above.
        dtype: of the answer; it is computed in float64 a few rows at a time, so that no second copy is made.

    Returns:
        `(in, in)`.
    """
    gram = cast(Tensor, stats.gram)
    # Inputs that are all zero tell nothing: then every weight counts alike.
    ridge = damping * float((gram.diagonal().double() / stats.tokens).mean()) or 1.0
    damped = torch.empty(gram.shape, dtype=dtype, device=gram.device)
    for first in range(0, gram.shape[0], _ROWS):
        rows = gram[first : first + _ROWS].double() / stats.tokens
        rows[:, first:].diagonal().add_(ridge)
        damped[first : first + _ROWS] = rows
    return damped


@final
@dataclass(frozen=True, eq=False)
class Factors:
    """What a column sweep needs of the inverse of a damped gram matrix, float64; treat it as read-only.

    Attributes:
        diagonal: `(in,)`, of the inverse.
        upper: `(in, in)`, upper Cholesky factor of the inverse: `upper.T @ upper == inverse`.
        damping: share of the mean diagonal that it took to factorise.
    """

    diagonal: Tensor
    upper: Tensor
    damping: float


class _LastFactors:
    """The factors of one layer's gram matrix, kept while several patterns are tried on it."""

    def __init__(self) -> None:
        self._gram: weakref.ref[Tensor] | None = None
        self._kept: Factors | None = None
        self.keeps = True

    def of(self, stats: LayerStats, layer: str, device: torch.device) -> Factors:
        gram = cast(Tensor, stats.gram)
        known = self._gram() if self._gram is not None else None
        if known is gram and self._kept is not None and self._kept.upper.device == device:
            return self._kept
        self.forget()
        found = _factorise(stats, layer, device)
        if self.keeps:
            # They go when the matrix goes.
            self._kept, self._gram = found, weakref.ref(gram, self.forget)
        return found

    def forget(self, gone: object = None) -> None:
        """Let the factors go, unless they are by now those of another matrix than `gone`."""
        if gone is None or gone is self._gram:
            self._kept = self._gram = None


_LAST = _LastFactors()


@contextmanager
def factors_used_once() -> Iterator[None]:
    """Factors that are asked for inside the block are not kept: for a matrix so large that every copy counts."""
    before, _LAST.keeps = _LAST.keeps, False
    try:
        yield
    finally:
        _LAST.keeps = before


def factors(stats: LayerStats, layer: str, device: torch.device) -> Factors:
    """What a column sweep needs of the gram matrix of a layer's inputs.

    Damping starts at `DAMPING` and is raised tenfold, three times at most, while the matrix is not positive definite.
    The last answer is kept as long as the gram matrix lives, because a search asks for many patterns of one layer in a
    row.

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
        # At most two of these matrices at a time.
        lower, failed = torch.linalg.cholesky_ex(damped_gram(stats, damping).to(device))
        if bool(failed):
            continue
        inverse = torch.cholesky_inverse(lower)
        del lower
        upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not bool(failed):
            return Factors(inverse.diagonal().clone(), upper, damping)
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
