"""n:m:g masks: balanced, exact, and at least as good as STen's."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sparsewright.core import NMG, PatternError, parse_pattern
from sparsewright.core.grouped import assign_patterns, kept_rows, mask_of_patterns, row_blocks
from sparsewright.solvers import solve_mask

# sum|kept| / sum|W| of a 768 x 768 Gaussian as STen's greedy conversion leaves it, for g = 1, 4, 16, 64.
STEN = {
    "2:4": (0.686, 0.721, 0.735, 0.741),
    "3:6": (0.720, 0.745, 0.755, 0.760),
    "1:4": (0.401, 0.436, 0.450, 0.456),
    "2:8": (0.450, 0.471, 0.481, 0.484),
    "1:10": (0.207, 0.224, 0.232, 0.234),
}


def best_balanced(tile: np.ndarray, rule: NMG) -> float:
    """The largest balanced sum of one tile `(m, columns)`, by a solver of another kind."""
    patterns = list(combinations(range(rule.m), rule.n))
    gains = np.array([tile[list(rows)].sum(0) for rows in patterns]).repeat(rule.g, axis=0)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    assert len(columns) == tile.shape[1]
    return float(gains[rows, columns].sum())


@pytest.mark.parametrize("text", [f"{nm}:{g}" for nm in STEN for g in (1, 4, 16, 64)])
def test_masks_keep_at_least_what_stens_conversion_keeps(text: str) -> None:
    weight = torch.randn(768, 768, generator=torch.Generator().manual_seed(0)).abs()
    mask = solve_mask(weight, text)
    assert parse_pattern(text).check_mask(mask) == []
    nm, g = text.rsplit(":", 1)
    # The table has three digits.
    assert float(weight[mask].sum() / weight.sum()) >= STEN[nm][(1, 4, 16, 64).index(int(g))] - 0.0005


@pytest.mark.parametrize("text", ["2:4:1", "2:4:16", "3:6:4", "1:4:2", "2:8:4", "1:10:16", "4:8:1"])
@pytest.mark.parametrize("kind", ["gauss", "ties", "skewed"])
def test_every_tile_is_the_best_balanced_assignment(text: str, kind: str) -> None:
    rule = parse_pattern(text)
    assert isinstance(rule, NMG)
    generator = torch.Generator().manual_seed(5)
    # One whole chunk, and one that is a third as long.
    scores = torch.randn(3 * rule.m, rule.chunk + rule.chunk // 3, generator=generator).abs()
    if kind == "ties":
        scores = (2 * scores).round()
    elif kind == "skewed":
        # All columns want the same rows, so nearly all of them have to give way.
        scores += torch.arange(rule.m).repeat(3)[:, None]
    mask = solve_mask(scores, text)
    kept = torch.where(mask, scores, 0)
    for block in range(3):
        for columns in (slice(0, rule.chunk), slice(rule.chunk, None)):
            tile = scores[block * rule.m : (block + 1) * rule.m, columns].double().numpy()
            found = float(kept[block * rule.m : (block + 1) * rule.m, columns].double().sum())
            assert found == pytest.approx(best_balanced(tile, rule), rel=1e-9)


def test_any_number_of_rows_and_columns_is_served() -> None:
    for shape in ((1, 1), (5, 3), (7, 81), (769, 100), (6, 79)):
        scores = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for text in ("3:6:4", "1:10:16", "2:4:1", "4:4:1"):
            mask = solve_mask(scores, text)
            assert parse_pattern(text).check_mask(mask) == [], f"{text} {shape}"
            assert not solve_mask(-scores.abs(), text, "at_most").any()


def test_very_large_and_very_small_scores_are_compared_all_the_same() -> None:
    scores = torch.randn(6, 80, generator=torch.Generator().manual_seed(2)).double()
    expected = solve_mask(scores, "3:6:4")
    for factor in (2.0**1000, 2.0**-900):
        assert torch.equal(solve_mask(scores * factor, "3:6:4"), expected)


def test_patterns_stand_in_the_order_in_which_neighbours_differ_in_one_place() -> None:
    assert kept_rows(2, 4).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [0, 3], [2, 3]]
    assert kept_rows(1, 4).tolist() == [[1], [0], [2], [3]]
    for m in range(1, 10):
        for n in range(1, m + 1):
            rows = kept_rows(n, m).tolist()
            assert sorted(map(tuple, rows)) == list(combinations(range(m), n))
            assert all(sum(a != b for a, b in zip(one, two)) == 1 for one, two in zip(rows, rows[1:]))


def test_a_mask_that_keeps_less_obeys_exactly_if_a_full_one_contains_it() -> None:
    rule = NMG(1, 3, 1)
    generator = torch.Generator().manual_seed(3)
    lawful = 0
    for _ in range(200):
        mask = torch.rand(3, 3, generator=generator) < 0.3
        kept = [column.nonzero().flatten().tolist() for column in mask.T]
        # Every column keeps one row at most, and no two of the chunk the same.
        rows = [row for column in kept for row in column]
        expected = all(len(column) <= 1 for column in kept) and len(set(rows)) == len(rows)
        assert (rule.check_mask(mask) == []) == expected
        lawful += expected
    assert 20 < lawful < 180


def test_a_pattern_that_serves_too_many_columns_is_named() -> None:
    mask = torch.zeros(12, 160, dtype=torch.bool)
    mask[6:9, 80:85] = True
    assert NMG(3, 6, 5).check_mask(mask) == []
    assert "output block 1, columns from 80" in NMG(3, 6, 4).check_mask(mask)[0]
    # Single rows are served by many patterns, but not by so many.
    mask = torch.zeros(6, 80, dtype=torch.bool)
    mask[0, :40] = True
    assert NMG(3, 6, 4).check_mask(mask) == []
    mask[0, 40] = True
    assert NMG(3, 6, 4).check_mask(mask)
    mask = torch.zeros(6, 80, dtype=torch.bool)
    mask[:4, 7] = True
    assert "column 7 keeps more than 3 of 6" in NMG(3, 6, 4).check_mask(mask)[0]


def test_too_many_patterns_are_refused_in_words() -> None:
    with pytest.raises(PatternError, match="12870 patterns; at most 1024"):
        parse_pattern("8:16:1")


def test_pattern_numbers_and_masks_say_the_same() -> None:
    scores = torch.rand(13, 90, generator=torch.Generator().manual_seed(4))
    chosen = assign_patterns(row_blocks(scores, 6), 3, 6, 4)
    mask = mask_of_patterns(chosen, 3, 6, 13)
    assert mask.shape == (13, 90)
    assert torch.equal(assign_patterns(row_blocks(mask, 6), 3, 6, 4)[:2], chosen[:2])
