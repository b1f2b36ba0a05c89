"""From dense to a pattern in small steps: the patterns of the same kind on the way."""

from dataclasses import replace

from ...core import NM, NMG, AbstractPattern, Block, Dense, PatternError, Transposable, Unstructured

# Nearer to dense than this, a density has no text of its own.
_NEARLY_ALL = 1 - 1e-6


def on_the_way(goal: AbstractPattern, density: float) -> AbstractPattern:
    """The pattern of the goal's kind whose density is nearest to `density`; of two, the denser.

    N:M, shared, transposable and n:m:g ones go m:m (dense), (m-1):m, ..., n:m; the others by density. A pattern of a
    kind that is not known here stays dense to the end. n:m:g leaves out those that have too many choices.

    Args:
        goal: the pattern at the end.
        density: 0..1; at or below the goal's own it is the goal.
    """
    if density <= goal.density:
        return goal
    if isinstance(goal, NM | Transposable | NMG):
        chain = [Dense(), *(step for n in range(goal.m - 1, goal.n, -1) if (step := _with(goal, n))), goal]
        return min(chain, key=lambda step: abs(step.density - density))
    if isinstance(goal, Unstructured | Block) and density < _NEARLY_ALL:
        return replace(goal, kept=density)
    return Dense()


def _with(goal: NM | Transposable | NMG, n: int) -> AbstractPattern | None:
    """The same with another n, if there is such a pattern."""
    try:
        return replace(goal, n=n)
    except PatternError:
        return None
