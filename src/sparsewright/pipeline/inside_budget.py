"""Whether one row of the end table keeps the recipe's budget: the same test for ours, the dense model and rivals."""

from collections.abc import Mapping

from ..models.tasks import Quality
from .plan_search import judge
from .session import Session


def inside_quality(session: Session, quality: Quality | None, dense: Quality) -> bool | None:
    """Whether the bounds on quality hold: the mean drop (or so many standard errors) and the worst slice.

    Args:
        session: whose recipe has the budget.
        quality: of the row; None where it was not evaluated.
        dense: of the dense model on the same items.

    Returns:
        None where the budget bounds no quality or the row has none.
    """
    budget = session.recipe.budget
    if quality is None or (budget.max_quality_drop is None and budget.worst_slice_drop is None):
        return None
    return judge(quality, dense).inside(session)


def inside_budget(
    session: Session,
    quality: Quality | None,
    dense: Quality,
    speedups: Mapping[str, float | None],
    file_bytes: float | None,
) -> bool | None:
    """Whether every bound of the budget holds.

    Args:
        session: whose recipe has the budget.
        quality: of the row; None where it was not evaluated.
        dense: of the dense model on the same items.
        speedups: measured speed-up over the dense model by batch size; the bound is asked of each.
        file_bytes: what would have to be shipped.

    Returns:
        False where a bound is broken, whatever is known of the others; None where none is broken but one could not be
        checked, or the budget has no bounds; else True.
    """
    budget = session.recipe.budget
    held: list[bool | None] = []
    if budget.max_quality_drop is not None or budget.worst_slice_drop is not None:
        held.append(inside_quality(session, quality, dense))
    if budget.speedup is not None:
        held += [None if speed is None else speed >= budget.speedup for speed in speedups.values()]
    if budget.size_bytes is not None:
        held.append(None if file_bytes is None else file_bytes <= budget.size_bytes)
    if False in held:
        return False
    return None if not held or None in held else True
