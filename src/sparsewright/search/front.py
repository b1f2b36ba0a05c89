"""Fronts: the plans that no other plan beats in both loss and cost."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Iterable[T], loss: Callable[[T], float], cost: Callable[[T], float]) -> list[T]:
    """Remove what is dominated.

    Args:
        items: any order; of equal items the first stays.
        loss: lower is better.
        cost: lower is better.

    Returns:
        The rest, cheapest first; loss falls strictly as cost rises.
    """
    numbered = sorted(enumerate(items), key=lambda pair: (cost(pair[1]), loss(pair[1]), pair[0]))
    front: list[T] = []
    best = float("inf")
    for _, item in numbered:
        if loss(item) < best:
            front.append(item)
            best = loss(item)
    return front


def dominates(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether (loss, cost) `first` is at least as good as `second` in both and better in one."""
    return first[0] <= second[0] and first[1] <= second[1] and first != second
