"""Finding a solver by the pattern, counts for global densities, rankings with ties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.core import NumericError, PatternError, RegistryError, parse_pattern
from sparsewright.solvers import solve_global, solve_mask, solvers, top_counts, top_n, unit_scores


@pytest.mark.parametrize("text", ["2:4", "2:4x4", "50%", "4x1@50%", "4x4@25%"])
def test_every_pattern_of_the_cpu_search_space_finds_its_solver(text: str) -> None:
    assert parse_pattern(text).check_mask(solve_mask(torch.rand(32, 64), text)) == []


def test_a_pattern_without_a_solver_lists_what_each_solver_can_do() -> None:
    assert all(solver.why_not(parse_pattern("40:80t")) for _, solver in solvers.items() if solver.exact)
    with pytest.raises(
        PatternError, match=r"blocks: .*4x1@50%.*group_top_n: .*2:4.*tsenor: .*by name only.*unstructured: "
    ):
        solve_mask(torch.rand(80, 80), "40:80t")


def test_a_solver_can_be_asked_for_by_name() -> None:
    scores = torch.rand(8, 16)
    assert torch.equal(solve_mask(scores, "2:4", solver="group_top_n"), solve_mask(scores, "2:4"))
    with pytest.raises(PatternError, match="cannot solve 2:4"):
        solve_mask(scores, "2:4", solver="blocks")
    with pytest.raises(RegistryError, match="Did you mean 'blocks'"):
        solve_mask(scores, "2:4", solver="block")


def test_dense_keeps_everything_or_at_most_what_is_positive() -> None:
    scores = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    assert solve_mask(scores, "dense").all()
    assert solve_mask(scores, "dense", "at_most").tolist() == [[True, False], [False, True]]
    with pytest.raises(NumericError):
        solve_mask(torch.tensor([[float("nan")]]), "dense")


def test_the_count_is_one_of_two_words() -> None:
    with pytest.raises(PatternError, match="at_most"):
        solve_mask(torch.rand(4, 4), "2:4", "most")  # type: ignore[arg-type]


def test_a_shared_choice_is_made_by_the_summed_score_with_a_short_last_group() -> None:
    scores = torch.zeros(5, 4)
    scores[0, 3] = scores[3, 2] = 1.0
    scores[1, 0] = scores[2, 0] = 0.6
    scores[4, 3] = 0.1
    mask = solve_mask(scores, "1:4x4")
    assert mask[:4].nonzero()[:, 1].tolist() == [0, 0, 0, 0]
    assert mask[4].tolist() == [False, False, False, True]


def test_sums_do_not_lose_small_scores_beside_large_ones() -> None:
    scores = torch.tensor([[1e8, 1e8], [0.0, 1.0]])
    assert solve_mask(scores, "1:2x2").tolist() == [[False, True], [False, True]]


def test_a_global_density_goes_where_scores_are_highest_and_ties_to_the_earlier_layer() -> None:
    scores = {"a": torch.full((2, 4), 1.0), "b": torch.full((3, 4), 2.0), "c": torch.full((1, 4), 1.0)}
    masks = solve_global(scores, 14 / 24)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": 2, "b": 12, "c": 0}
    assert masks["a"].nonzero().tolist() == [[0, 0], [0, 1]]
    assert all(bool(mask.all()) for mask in solve_global(scores, 1.0).values())


def test_a_global_density_refuses_nan_by_layer_and_densities_out_of_range() -> None:
    with pytest.raises(NumericError, match=r"encoder\.fc2.*\[0, 1\]"):
        solve_global({"encoder.fc1": torch.ones(1, 2), "encoder.fc2": torch.tensor([[0.0, float("nan")]])}, 0.5)
    for density in (0.0, 1.5):
        with pytest.raises(PatternError, match="global density"):
            solve_global({"a": torch.ones(1, 2)}, density)
    with pytest.raises(PatternError, match="0 layers"):
        solve_global({}, 0.5)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 40))
def test_the_best_n_are_those_of_a_stable_sort(values: list[int], n: int) -> None:
    n = min(n, len(values))
    scores = torch.tensor([values], dtype=torch.float32)
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[sorted(range(len(values)), key=lambda i: -values[i])[:n]] = True
    assert torch.equal(top_n(scores, n)[0], expected)
    assert torch.equal(top_counts(scores, torch.tensor([n]))[0], expected)


def test_unit_scores_are_sums_over_rows_and_columns() -> None:
    scores = torch.arange(15.0).view(5, 3)
    assert unit_scores(scores, 2).tolist() == [[3, 5, 7], [15, 17, 19], [12, 13, 14]]
    assert unit_scores(scores, 5, 3).tolist() == [[105]]
    assert unit_scores(scores, 1) is scores
