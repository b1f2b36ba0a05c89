"""A budget is checked where it is written."""

import pytest

from sparsewright.core import BudgetError
from sparsewright.search import Budget


def test_an_empty_budget_is_open():
    assert Budget().is_open
    assert not Budget(size_bytes=10).is_open


@pytest.mark.parametrize("name", ["speedup", "max_quality_drop", "size_bytes", "worst_slice_drop"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "2", True])
def test_what_is_no_bound_is_refused_by_name(name, value):
    with pytest.raises(BudgetError, match=name):
        Budget(**{name: value})


def test_a_slowdown_is_taken_for_a_mistake():
    with pytest.raises(BudgetError, match="Write 2 if you meant the inverse"):
        Budget(speedup=0.5)
    with pytest.raises(BudgetError, match="no meaning"):
        Budget(speedup=0)
