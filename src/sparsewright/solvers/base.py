"""What a mask solver is: scores and a pattern in, a mask out; no data, no model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args, overload

import torch
from torch import Tensor
from torch.nn import functional

from ..core import AbstractPattern, Dense, Edge, PatternError, Registry, parse_pattern, require_finite

# exactly: as many as the pattern keeps, whatever the scores; at_most: positive scores only.
Count = Literal["exactly", "at_most"]


def require_count(count: str) -> None:
    """Raise PatternError unless `count` is one of `Count`."""
    if count not in get_args(Count):
        raise PatternError(f"count is 'exactly' or 'at_most', got {count!r}.")


def _require_tensor(scores: object) -> None:
    if not isinstance(scores, Tensor):
        raise PatternError(f"Scores are a tensor (out, in), got {type(scores).__name__}. Use torch.as_tensor.")


@final
@dataclass(frozen=True, eq=False)
class MaskSolution:
    """A mask and the prices that prove it best.

    `r = w - a_i - b_j` with row price a and column price b: no mask keeps more than `kept + gap` summed over the tiles,
    where a tile's gap is the sum of -r over kept cells with r < 0 and of r over dropped ones with r > 0, and, for
    counts of at most n, of price times unused count over its rows and columns (prices are then never negative).

    Attributes:
        mask: `(*lead, out, in)` bool, True = keep.
        kept: kept sum of scores.
        gap: `(*lead, out/M, in/M)` float64, edge tiles too; zero proves that nothing better exists. Evaluated without
            rounding for scores that span up to 2^24, and to about 1e-16 of the scores beyond.
        row_prices: `(*lead, out/M, in/M, M)` float64, zeros where an edge tile has no row.
        column_prices: the same for columns.
    """

    mask: Tensor
    kept: float
    gap: Tensor
    row_prices: Tensor
    column_prices: Tensor


class AbstractMaskSolver(ABC):
    """Chooses what to keep. A solver writes `why_not` and `choose`; the checks around them are here, once.

    Laws (checked by `sparsewright.testing.MaskSolverContract`): the mask obeys the pattern; ties go to the lower index
    (transposable ones by a fixed rule of the solver);
    the result is the same for any thread count and whatever other rows are solved with it.

    Attributes:
        exact: whether no mask of the pattern keeps a larger sum. Solvers that only come near are taken by name only.
        certifies: whether it proves what it finds, and takes forced cells, a start and leading dimensions.
        finds_infinities: whether `choose` itself refuses scores that are not finite, so that they are read once.
        own_edges: treatments of cut off tiles that `choose` takes itself; others are made of whole tiles around it.
    """

    exact = True
    certifies = False
    finds_infinities = False
    own_edges: ClassVar[frozenset[Edge]] = frozenset()

    @abstractmethod
    def why_not(self, pattern: AbstractPattern) -> list[str]:
        """Reasons why this solver cannot solve the pattern; empty if it can."""

    @abstractmethod
    def choose(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """The mask of checked scores: `(out, in)`, floating point, finite, of a shape that fits the pattern."""

    def solve(self, scores: Tensor, pattern: AbstractPattern, count: Count = "exactly") -> Tensor:
        """Choose what to keep.

        Args:
            scores: `(out, in)`, floating point, finite; higher means keep.
            pattern: a pattern with an empty `why_not`; its `edge` says what becomes of tiles that are cut off.
            count: `exactly` keeps as many as the pattern allows even if scores are zero or negative; `at_most` drops
                what has no positive score (for shared choices: no positive summed score).

        Returns:
            `(out, in)` bool on the scores' device, True = keep.

        Raises:
            PatternError: the solver cannot solve the pattern, or the pattern does not fit the shape.
            NumericError: a score is NaN or infinite; the message names its position.
        """
        self._check(scores, pattern, count)
        if scores.dim() != 2:
            raise PatternError(f"Scores are {_FORM}, got {tuple(scores.shape)}. {_FLATTEN}")
        pattern.require_fit((scores.shape[0], scores.shape[1]), "scores")
        if not self.finds_infinities:
            require_finite(scores, "scores")
        out, in_ = scores.shape
        rows, columns = pattern.tile
        if (out % rows or in_ % columns) and pattern.edge not in self.own_edges:
            return self._with_edges(scores.detach(), pattern, count)
        return self.choose(scores.detach(), pattern, count)

    def _with_edges(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> Tensor:
        """Leave cut off tiles dense, or fill them up with cells that nobody wants."""
        out, in_ = scores.shape
        rows, columns = pattern.tile
        if pattern.edge == "dense":
            mask = torch.ones_like(scores, dtype=torch.bool)
            whole = scores[: out // rows * rows, : in_ // columns * columns]
            if whole.numel():
                mask[: whole.shape[0], : whole.shape[1]] = self.choose(whole, pattern, count)
            return mask
        # No score is lower, and what fills up stands behind all it could tie with.
        filled = functional.pad(scores, (0, -in_ % columns, 0, -out % rows), value=float(scores.min()))
        return self.choose(filled, pattern, count)[:out, :in_]

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
        """Like `solve`, with the proof; see `solve_mask` for the arguments.

        Raises:
            PatternError: this solver proves nothing and takes no constraints.
        """
        raise PatternError(
            f"{type(self).__name__} gives masks without certificates and takes no keep, drop or start. "
            "Take the solver 'transposable' with a pattern such as 2:4t, or leave these out."
        )

    def _check(self, scores: Tensor, pattern: AbstractPattern, count: Count) -> None:
        require_count(count)
        reasons = self.why_not(pattern)
        if reasons:
            raise PatternError(f"This solver cannot solve {pattern}: {'; '.join(reasons)}. Use solve_mask to find one.")
        _require_tensor(scores)
        if scores.dim() < 2 or not scores.is_floating_point() or scores.numel() == 0:
            raise PatternError(f"Scores are {_FORM}, got {tuple(scores.shape)} {scores.dtype}. {_FLATTEN}")


_FORM = "a floating-point matrix (out, in)"
_FLATTEN = "Flatten a convolution to (out, in*kh*kw) first."

solvers: Registry[AbstractMaskSolver] = Registry("solvers", AbstractMaskSolver)


@overload
def solve_mask(
    scores: Tensor,
    pattern: AbstractPattern | str,
    count: Count = ...,
    solver: str | None = ...,
    *,
    certificate: Literal[False] = ...,
    edge: Edge | None = ...,
    keep: Tensor | None = ...,
    drop: Tensor | None = ...,
    start: MaskSolution | None = ...,
) -> Tensor: ...
@overload
def solve_mask(
    scores: Tensor,
    pattern: AbstractPattern | str,
    count: Count = ...,
    solver: str | None = ...,
    *,
    certificate: Literal[True],
    edge: Edge | None = ...,
    keep: Tensor | None = ...,
    drop: Tensor | None = ...,
    start: MaskSolution | None = ...,
) -> MaskSolution: ...
def solve_mask(
    scores: Tensor,
    pattern: AbstractPattern | str,
    count: Count = "exactly",
    solver: str | None = None,
    *,
    certificate: bool = False,
    edge: Edge | None = None,
    keep: Tensor | None = None,
    drop: Tensor | None = None,
    start: MaskSolution | None = None,
) -> Tensor | MaskSolution:
    """Choose what to keep with the solver that can solve the pattern.

    Args:
        scores: `(out, in)`, floating point, finite; higher means keep. For transposable patterns any leading
            dimensions may stand before.
        pattern: a pattern or its text.
        count: `exactly` or `at_most` (positive scores only).
        solver: a registered name; None takes the first exact one, by name, that can.
        certificate: return a `MaskSolution`, whose prices prove that no mask keeps more. Transposable patterns only, as
            are `keep`, `drop` and `start`.
        edge: what becomes of groups and tiles that the edge cuts off: `error` refuses them, `at_most` keeps at most as
            many as of whole ones, `dense` keeps them whole; None: what the pattern itself says, `error` for texts.
        keep: bool like `scores`, cells that stay whatever their score.
        drop: bool like `scores`, cells that go.
        start: an earlier solution of similar scores, whose prices are close.

    Returns:
        `scores.shape` bool, True = keep; or a `MaskSolution`.

    Raises:
        PatternError: no registered solver can (the message lists what each says), the pattern does not fit, or no mask
            of it obeys `keep` and `drop` (the message names tile and row).
        NumericError: a score is NaN or infinite.
    """
    rule = parse_pattern(pattern)
    rule = rule if edge is None else rule.with_edge(edge)
    plain = not certificate and keep is None and drop is None and start is None

    def solved(chosen: AbstractMaskSolver) -> Tensor | MaskSolution:
        if plain and not (chosen.certifies and isinstance(scores, Tensor) and scores.dim() > 2):
            return chosen.solve(scores, rule, count)
        found = chosen.solution(scores, rule, count, keep=keep, drop=drop, start=start)
        return found if certificate else found.mask

    if solver is not None:
        return solved(solvers.get(solver))
    if isinstance(rule, Dense) and plain:
        require_count(count)
        _require_tensor(scores)
        require_finite(scores, "scores")
        return torch.ones_like(scores, dtype=torch.bool) if count == "exactly" else scores > 0
    said = []
    for name, candidate in solvers.items():
        reasons = candidate.why_not(rule)
        if not reasons and candidate.exact:
            return solved(candidate)
        said.append(f"{name}: {'; '.join(reasons) or 'not exact, taken by name only'}")
    raise PatternError(
        f"No registered solver can solve {rule} ({' | '.join(said)}). "
        "Install a package that brings one, or choose a pattern that these solve."
    )
