"""NaN at the door, layer stats, dispatch tables."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.core import (
    DataError,
    DispatchEntry,
    DispatchTable,
    LayerStats,
    NumericError,
    ProfileError,
    require_finite,
    suggest,
)


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_the_first_bad_element_is_named_by_its_index(rows: int, columns: int, data: st.DataObject) -> None:
    tensor = torch.zeros(rows, columns)
    require_finite(tensor, "weight of fc1")
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    tensor[row, column] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    with pytest.raises(NumericError, match=rf"weight of fc1.*\[{row}, {column}\]"):
        require_finite(tensor, "weight of fc1")


def test_integers_bools_and_empty_tensors_are_always_finite() -> None:
    for tensor in (torch.ones(2, dtype=torch.int8), torch.ones(2, dtype=torch.bool), torch.empty(0)):
        require_finite(tensor, "index")


def test_layer_stats_give_the_root_mean_square_and_refuse_nothing_seen() -> None:
    stats = LayerStats(4, torch.zeros(2), torch.tensor([4.0, 16.0]))
    assert stats.norm.tolist() == [1.0, 2.0]
    with pytest.raises(DataError, match="no tokens"):
        LayerStats(0, torch.zeros(2), torch.zeros(2))
    with pytest.raises(NumericError):
        LayerStats(1, torch.zeros(2), torch.tensor([1.0, math.nan]))


def test_the_first_entry_that_holds_wins_and_tables_stack() -> None:
    ours = DispatchTable((DispatchEntry("linear", ("row",), group=16, tokens=(1, 8)),))
    default = DispatchTable((DispatchEntry("linear", ("token", "reference")),))
    table = ours.over(default)
    assert table.prefer("linear", 16, 4, 768, 0.5) == ("row",)
    assert table.prefer("linear", 16, 8, 768, 0.5) == ("token", "reference")
    assert table.prefer("convolution", 16, 8, 768, 0.5) == ()


def test_a_dispatch_table_survives_plain_data() -> None:
    table = DispatchTable(
        (DispatchEntry("linear", ("row",), tokens=(2, math.inf)), DispatchEntry("x", ("y",), group=4))
    )
    assert DispatchTable.from_data(table.to_data()) == table
    with pytest.raises(ProfileError, match="malformed"):
        DispatchTable.from_data([{"op": "linear"}])


def test_suggestions_are_the_nearest_word_or_all() -> None:
    assert suggest("wnada", ["wanda", "magnitude"]) == "Did you mean 'wanda'?"
    assert suggest("zzz", ["b", "a"]) == "Known: a, b."
    assert suggest("zzz", []) == "Known: none."
    assert suggest("zzz", [f"model{number}" for number in range(1000)]).endswith(" and 970 more.")
