"""TSENOR: transposable N:M masks by entropic optimal transport, rounded greedily; approximate, all tiles at once.

Source: Meng, Makni, Mazumder 2025, arXiv:2505.23949: Dykstra's projections (algorithm 1), here on logarithms, then
greedy rounding with local search (algorithm 2). For comparison; `transposable` is exact, faster, with nothing to tune.
"""

from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor

from ..core import AbstractPattern, PatternError, Transposable
from .base import AbstractMaskSolver, Count, solvers
from .tiling import cut_tiles, join_tiles, take_by_order


@final
@solvers.register("tsenor")
@dataclass(frozen=True)
class Tsenor(AbstractMaskSolver):
    """Entropic transport, greedy rounding, local search.

    Attributes:
        tau: inverse temperature, in units of 1 / the tile's largest |score|.
        iterations: rounds of projections.
        swaps: steps of local search per tile.
    """

    tau: float = 100.0
    iterations: int = 300
    swaps: int = 10

    exact = False

    def __post_init__(self) -> None:
        if not self.tau > 0 or self.iterations < 1 or self.swaps < 0:
            raise PatternError(
                "TSENOR takes tau > 0, iterations >= 1 and swaps >= 0, "
                f"got {self.tau}, {self.iterations}, {self.swaps}."
            )

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Transposable N:M."""
        single = isinstance(pattern, Transposable) and pattern.size == 1
        return [] if single else ["it solves transposable N:M of single weights such as 2:4t"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Rows and columns may stay short of N, whatever `count` says."""
        rule = cast(Transposable, pattern)
        tiles = cut_tiles(scores, rule.m, rule.m).double()
        largest = tiles.abs().amax((1, 2), keepdim=True)
        tiles = (tiles / torch.where(largest > 0, largest, 1)).float()
        share = self.transport(tiles, rule.n)
        order = share.flatten(1).sort(dim=1, descending=True, stable=True).indices
        mask = self._searched(tiles, take_by_order(order, rule.m, rule.n), rule.n)
        joined = join_tiles(mask, *scores.shape)[0]
        return joined if count == "exactly" else joined & (scores > 0)

    def transport(self, tiles: Tensor, n: int) -> Tensor:
        """The fractional mask of `(tiles, M, M)` scores of at most 1: logarithms of values in 0..1 (equations 2, 3)."""
        log_share = self.tau * tiles
        log_n = torch.log(torch.tensor(float(n), dtype=tiles.dtype, device=tiles.device))
        # Only the bound of 1 per cell needs Dykstra's correction; the sums are affine.
        correction = torch.zeros_like(log_share)
        for _ in range(self.iterations):
            log_share = log_share - (log_share.logsumexp(2, keepdim=True) - log_n)
            log_share = log_share - (log_share.logsumexp(1, keepdim=True) - log_n)
            raised = log_share + correction
            log_share = raised.clamp_max(0)
            correction = raised - log_share
        return log_share

    def _searched(self, tiles: Tensor, mask: Tensor, n: int) -> Tensor:
        """A row and a column that are short take a cell each, where giving up the one between them pays."""
        mask = mask.clone()
        size = tiles.shape[1]
        for _ in range(self.swaps):
            short_rows, short_columns = mask.sum(2) < n, mask.sum(1) < n
            at = (short_rows.any(1) & short_columns.any(1)).nonzero().squeeze(1)
            if not len(at):
                break
            w, held = tiles[at], mask[at]
            index = torch.arange(len(at), device=at.device)
            row = short_rows[at].to(torch.uint8).argmax(1)
            column = short_columns[at].to(torch.uint8).argmax(1)
            # gain[i', j'] = w[i, j'] + w[i', j] - w[i', j']
            gain = w[index, row][:, None, :] + w[index, :, column][:, :, None] - w
            fits = held & ~held[index, row][:, None, :] & ~held[index, :, column][:, :, None]
            best, cell = gain.masked_fill(~fits, -torch.inf).flatten(1).max(1)
            better = best > 0
            chosen, i, j = at[better], cell[better] // size, cell[better] % size
            mask[chosen, i, j] = False
            mask[chosen, row[better], j] = True
            mask[chosen, i, column[better]] = True
        return mask
