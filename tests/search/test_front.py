"""A front holds exactly what nothing else beats."""

from hypothesis import given
from hypothesis import strategies as st

from sparsewright.search import dominates, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30)


@given(POINTS)
def test_the_front_is_what_no_point_dominates(points):
    front = pareto_front(points, loss=lambda p: p[0], cost=lambda p: p[1])
    wanted = {p for p in points if not any(dominates(q, p) for q in points)}
    assert set(front) == wanted
    assert len(front) == len(wanted)


@given(POINTS)
def test_loss_falls_as_cost_rises(points):
    front = pareto_front(points, loss=lambda p: p[0], cost=lambda p: p[1])
    assert all(a[1] < b[1] and a[0] > b[0] for a, b in zip(front, front[1:]))


def test_of_equal_items_the_first_stays():
    items = [("a", 1, 1), ("b", 1, 1)]
    assert pareto_front(items, loss=lambda i: i[1], cost=lambda i: i[2]) == [("a", 1, 1)]
