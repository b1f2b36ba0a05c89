"""What a mask solver is: scores and a pattern in, a mask out; no data, no model."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core import AbstractPattern, Dense, PatternError, Registry, parse_pattern, require_finite

# exactly: as many as the pattern keeps, whatever the scores; at_most: positive scores only.
Count = Literal["exactly", "at_most"]


class AbstractMaskSolver(ABC):
    """Chooses what to keep. A solver writes `why_not` and `choose`; the checks around them are here, once.

    Laws (checked by `sparsewright.testing.MaskSolverContract`): the mask obeys the pattern; ties go to the lower index;
    the result is the same for any thread count and whatever other rows are solved with it.
    """

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
            pattern: a pattern with an empty `why_not`.
            count: `exactly` keeps as many as the pattern allows even if scores are zero or negative; `at_most` drops
                what has no positive score (for shared choices: no positive summed score).

        Returns:
            `(out, in)` bool on the scores' device, True = keep.

        Raises:
            PatternError: the solver cannot solve the pattern, or the pattern does not fit the shape.
            NumericError: a score is NaN or infinite; the message names its position.
        """
        if count not in get_args(Count):
            raise PatternError(f"count is 'exactly' or 'at_most', got {count!r}.")
        reasons = self.why_not(pattern)
        if reasons:
            raise PatternError(f"This solver cannot solve {pattern}: {'; '.join(reasons)}. Use solve_mask to find one.")
        if not isinstance(scores, Tensor):
            raise PatternError(f"Scores are a tensor (out, in), got {type(scores).__name__}. Use torch.as_tensor.")
        if scores.dim() != 2 or not scores.is_floating_point() or scores.numel() == 0:
            raise PatternError(
                f"Scores are a floating-point matrix (out, in), got {tuple(scores.shape)} {scores.dtype}. "
                "Flatten a convolution to (out, in*kh*kw) first."
            )
        pattern.require_fit((scores.shape[0], scores.shape[1]), "scores")
        require_finite(scores, "scores")
        return self.choose(scores.detach(), pattern, count)


solvers: Registry[AbstractMaskSolver] = Registry("solvers", AbstractMaskSolver)


def solve_mask(
    scores: Tensor, pattern: AbstractPattern | str, count: Count = "exactly", solver: str | None = None
) -> Tensor:
    """Choose what to keep with the solver that can solve the pattern.

    Args:
        scores: `(out, in)`, floating point, finite; higher means keep.
        pattern: a pattern or its text.
        count: `exactly` or `at_most` (positive scores only).
        solver: a registered name; None takes the first, by name, that can.

    Returns:
        `(out, in)` bool, True = keep.

    Raises:
        PatternError: no registered solver can (the message lists what each says), or the pattern does not fit.
        NumericError: a score is NaN or infinite.
    """
    rule = parse_pattern(pattern)
    if solver is not None:
        return solvers.get(solver).solve(scores, rule, count)
    if isinstance(rule, Dense):
        require_finite(scores, "scores")
        return torch.ones_like(scores, dtype=torch.bool) if count == "exactly" else scores > 0
    said = []
    for name, candidate in solvers.items():
        reasons = candidate.why_not(rule)
        if not reasons:
            return candidate.solve(scores, rule, count)
        said.append(f"{name}: {'; '.join(reasons)}")
    raise PatternError(
        f"No registered solver can solve {rule} ({' | '.join(said)}). "
        "Install a package that brings one, or choose a pattern that these solve."
    )
