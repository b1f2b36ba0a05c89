"""Exact transposable N:M masks with a certificate: N of M in every row and every column of each M x M tile.

Every tile is a transportation problem whose linear program has whole solutions. Dual midpoint sweeps and shortest
augmenting paths solve it in native code (`transposable.cpp`); row and column prices prove the result. On devices
without native code the same method runs in torch (`transposable_torch.py`). Source of the problem: Hubara et al. 2021,
arXiv:2102.08124; TSENOR, arXiv:2505.23949, which solves it approximately.
"""

import importlib.util
import math
from dataclasses import replace
from typing import ClassVar, cast, final, get_args

import torch
from torch import Tensor

from .. import _native
from ..core import AbstractPattern, Edge, PatternError, Transposable, require_finite
from .base import AbstractMaskSolver, Count, MaskSolution, require_count, solvers
from .sharing import spread, unit_scores
from .transposable_torch import infeasible, solve_tiles_in_torch

LARGEST_TILE = 64

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# Below so many scores a second thread costs more than it saves.
_SCORES_PER_THREAD = 1 << 17


@final
@solvers.register("transposable")
class ExactTransposable(AbstractMaskSolver):
    """The mask with the largest kept sum; ties go by one fixed rule of the solver."""

    certifies = True
    finds_infinities = True
    own_edges: ClassVar[frozenset[Edge]] = frozenset({"at_most", "dense"})

    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Transposable N:M up to M = 64."""
        if not isinstance(pattern, Transposable):
            return ["it solves transposable N:M such as 2:4t"]
        return [] if pattern.m <= LARGEST_TILE else [f"it solves tiles of at most {LARGEST_TILE} rows"]

    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Without the certificate."""
        rule = cast(Transposable, pattern)
        shape = (scores.shape[0], scores.shape[1])
        if rule.size > 1 and rule.cuts(shape):
            return self._with_edges(scores, rule, count)
        units = unit_scores(scores, rule.size, rule.size)
        mask = _solve(units, (rule.m, rule.m), (rule.n, rule.n), count, rule.edge, None, None, None, False).mask
        return spread(mask, rule.size, rule.size, shape)

    def solution(
        self,
        scores: Tensor,
        pattern: AbstractPattern,
        count: Count = "exactly",
        *,
        keep: Tensor | None = None,
        drop: Tensor | None = None,
        start: MaskSolution | None = None,
    ) -> MaskSolution:
        """With the certificate; leading dimensions are solved side by side.

        Blocks of several weights have it on their summed scores; a weight that is forced takes its block along.
        """
        self._check(scores, pattern, count)
        rule = cast(Transposable, pattern)
        pattern.require_fit((scores.shape[-2], scores.shape[-1]), "scores")
        if rule.size > 1:
            return self._by_blocks(scores, rule, count, keep, drop, start)
        return solve_tiles(
            scores, (rule.m, rule.m), (rule.n, rule.n), count, edge=rule.edge, keep=keep, drop=drop, start=start
        )

    def _by_blocks(
        self,
        scores: Tensor,
        rule: Transposable,
        count: Count,
        keep: Tensor | None,
        drop: Tensor | None,
        start: MaskSolution | None,
    ) -> MaskSolution:
        size, (out, in_) = rule.size, scores.shape[-2:]
        if rule.cuts((out, in_)):
            raise PatternError(
                f"Certificates and forced weights of {rule} take whole tiles of {rule.tile[0]} x {rule.tile[1]}, got "
                f"scores of {out} x {in_}. Pad them, or leave these out."
            )
        flat = scores.detach().reshape(-1, out, in_)
        units = torch.stack([unit_scores(matrix, size, size) for matrix in flat])
        units = units.view(*scores.shape[:-2], out // size, in_ // size)
        forced = [
            None if cells is None else cells.unflatten(-1, (-1, size)).any(-1).unflatten(-2, (-1, size)).any(-2)
            for cells in (keep, drop)
        ]
        found = self.solution(units, Transposable(rule.n, rule.m), count, keep=forced[0], drop=forced[1], start=start)
        mask = found.mask.repeat_interleave(size, dim=-1).repeat_interleave(size, dim=-2)
        return replace(found, mask=mask)


def solve_tiles(
    scores: Tensor,
    tile: tuple[int, int],
    counts: tuple[int, int],
    count: Count = "exactly",
    *,
    edge: Edge = "at_most",
    keep: Tensor | None = None,
    drop: Tensor | None = None,
    start: MaskSolution | None = None,
    certificate: bool = True,
) -> MaskSolution:
    """The best mask with bounds on the rows and the columns of every tile, tiles being square or not.

    Args:
        scores: `(*lead, out, in)`, floating point, finite; higher means keep.
        tile: rows and columns of a tile, 1 to 64 each; tiles are cut from the upper left corner.
        counts: how many cells each row of a tile keeps, and each column. For `exactly` both must come to as many cells.
        count: `exactly` so many, or `at_most` so many, of positive scores only. The two have different optima.
        edge: see `solve_mask`.
        keep, drop: see `solve_mask`.
        start: an earlier solution of the same shape; its column prices are where the search begins.
        certificate: False leaves `gap` and the prices empty and `kept` NaN, and saves their time.

    Raises:
        PatternError: counts that no tile can meet, `keep` and `drop` that no mask obeys, other shapes.
        NumericError: a score is NaN or infinite.
    """
    if not isinstance(scores, Tensor) or scores.dim() < 2 or not scores.is_floating_point() or scores.numel() == 0:
        form = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        raise PatternError(f"Scores are a floating-point tensor (*lead, out, in), got {form}.")
    for name, pair in (("tile", tile), ("counts", counts)):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(type(size) is int for size in pair)):
            raise PatternError(f"{name} is two whole numbers, for rows and for columns, got {pair!r}.")
    require_count(count)
    if edge not in get_args(Edge):
        raise PatternError(f"edge is 'error', 'at_most' or 'dense', got {edge!r}.")
    rows, columns = tile
    row_keep, column_keep = counts
    if not (1 <= rows <= LARGEST_TILE and 1 <= columns <= LARGEST_TILE):
        raise PatternError(f"Tiles have 1 to {LARGEST_TILE} rows and columns, got {rows} x {columns}.")
    if not (0 <= row_keep <= columns and 0 <= column_keep <= rows):
        raise PatternError(f"Rows of {rows} x {columns} tiles keep 0 to {columns}, columns 0 to {rows}, got {counts}.")
    if count == "exactly" and rows * row_keep != columns * column_keep:
        raise PatternError(
            f"{rows} rows that keep {row_keep} each and {columns} columns that keep {column_keep} come to "
            f"{rows * row_keep} and {columns * column_keep} cells. Make both alike, or ask for count='at_most'."
        )
    out, in_ = scores.shape[-2:]
    if edge == "error" and (out % rows or in_ % columns):
        raise PatternError(
            f"Tiles of {rows} x {columns} do not cut {out} x {in_} without a rest. "
            "Ask for edge='at_most' or edge='dense', or choose another size."
        )
    for name, cells in (("keep", keep), ("drop", drop)):
        if cells is None:
            continue
        if not isinstance(cells, Tensor):
            raise PatternError(f"{name} is a bool tensor of the scores' shape, got {type(cells).__name__}.")
        if cells.dtype != torch.bool or cells.shape != scores.shape or cells.device != scores.device:
            raise PatternError(
                f"{name} is a bool tensor of the scores' shape {tuple(scores.shape)} on their device {scores.device}, "
                f"got {tuple(cells.shape)} {cells.dtype} on {cells.device}."
            )
    first = None
    if start is not None:
        if not isinstance(start, MaskSolution):
            raise PatternError(
                f"start is an earlier MaskSolution, got {type(start).__name__}. Leave it out for the first."
            )
        first = start.column_prices
        wanted = (*scores.shape[:-2], -(-out // rows), -(-in_ // columns), columns)
        if tuple(first.shape) != wanted:
            raise PatternError(
                f"A solution to start from has column prices {wanted}, got {tuple(first.shape)}. "
                "Pass one of the same shape and pattern, or none."
            )
        if not bool(torch.isfinite(first).all()):
            raise PatternError("A solution to start from has finite prices. Pass another one, or none.")
    return _solve(scores.detach(), tile, counts, count, edge, keep, drop, first, certificate)


def _solve(
    scores: Tensor,
    tile: tuple[int, int],
    counts: tuple[int, int],
    count: Count,
    edge: Edge,
    keep: Tensor | None,
    drop: Tensor | None,
    first: Tensor | None,
    certificate: bool,
) -> MaskSolution:
    if scores.layout != torch.strided or scores.is_meta:
        raise PatternError(
            f"Scores are an ordinary dense tensor with values, got layout {scores.layout} on {scores.device}. "
            "Call to_dense(), or move them to a device that holds values."
        )
    if scores.device.type != "cpu":
        return _on_device(scores, tile, counts, count, edge, keep, drop, first)
    scores = scores.resolve_neg()
    if scores.dtype not in _TYPES:
        scores = scores.float()
    lead = scores.shape[:-2]
    out, in_ = scores.shape[-2:]
    matrices = scores if scores.dim() == 3 else scores.unsqueeze(0) if not lead else scores.reshape(-1, out, in_)
    batch = matrices.shape[0]
    mask = torch.empty((*lead, out, in_), dtype=torch.bool, device="cpu")
    tiles = (-(-out // tile[0]), -(-in_ // tile[1]))
    proofs: list[Tensor] = []
    addresses = (0, 0, 0, 0)
    if certificate:
        shape = (*lead, *tiles)
        proofs = [torch.empty((*shape, size), dtype=torch.float64, device="cpu") for size in tile]
        proofs += [torch.empty(shape, dtype=torch.float64, device="cpu") for _ in range(2)]
        addresses = (proofs[0].data_ptr(), proofs[1].data_ptr(), proofs[2].data_ptr(), proofs[3].data_ptr())
    kept_cells = None if keep is None else keep.contiguous()
    dropped_cells = None if drop is None else drop.contiguous()
    prices = None if first is None else first.to("cpu", torch.float64).contiguous()
    for given in (matrices, kept_cells, dropped_cells):
        if given is not None and _address(given) == 0:
            raise PatternError(f"Scores, keep and drop hold values of their own, got a {type(given).__name__} without.")
    threads = max(1, min(torch.get_num_threads(), scores.numel() // _SCORES_PER_THREAD))
    fault, _, row = _native.transposable(
        matrices.data_ptr(),
        _TYPES[scores.dtype],
        (batch, out, in_),
        (matrices.stride(0), matrices.stride(1), matrices.stride(2)),
        tile,
        counts,
        count == "at_most",
        edge == "dense",
        0 if kept_cells is None else kept_cells.data_ptr(),
        0 if dropped_cells is None else dropped_cells.data_ptr(),
        mask.data_ptr(),
        addresses,
        0 if prices is None else prices.data_ptr(),
        threads,
    )
    if fault >= 0:
        require_finite(scores, "scores")
        raise infeasible(fault, row, lead, tiles)
    if not certificate:
        none = torch.empty(0, dtype=torch.float64, device="cpu")
        return MaskSolution(mask, math.nan, none, none, none)
    # Not torch's sum, which depends on the number of threads.
    return MaskSolution(mask, float(proofs[3].numpy().sum()), proofs[2], proofs[0], proofs[1])


def _address(tensor: Tensor) -> int:
    """Where the values lie; 0 for tensors that only stand for some (fake, functional, wrapped ones)."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def _on_device(
    scores: Tensor,
    tile: tuple[int, int],
    counts: tuple[int, int],
    count: Count,
    edge: Edge,
    keep: Tensor | None,
    drop: Tensor | None,
    first: Tensor | None,
) -> MaskSolution:
    """Triton where it is and takes the problem, else torch; scores stay where they are."""
    free = count == "exactly" and keep is None and drop is None and first is None
    if free and scores.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from .transposable_triton import solve_tiles_in_triton, why_not_in_triton

        if not why_not_in_triton(scores, tile, counts):
            return solve_tiles_in_triton(scores, tile[0], counts[0])
    require_finite(scores, "scores")
    return solve_tiles_in_torch(scores, tile, counts, count, edge, keep, drop, first)
