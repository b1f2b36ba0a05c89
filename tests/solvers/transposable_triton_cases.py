"""Cases of the Triton kernels, run by `test_transposable_triton.py` in a process of its own."""

import os

import pytest
import torch
from transposable_checks import draw, rational_gap, tiles_of

from sparsewright.core import NumericError
from sparsewright.solvers import solve_mask, solve_tiles
from sparsewright.solvers.transposable_triton import solve_tiles_in_triton, why_not_in_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter takes seconds for a sort.
SIZES = ((4, 2), (5, 2)) if INTERPRETED else ((4, 2), (4, 1), (5, 2), (8, 4), (16, 8), (32, 16), (12, 5))
KINDS = ("gauss", "seventy percent zeros")
if not INTERPRETED:
    KINDS += ("eight levels", "signed", "bfloat16", "low rank", "zeros", "subnormal")


@pytest.mark.parametrize("kind", KINDS)
def test_every_tile_is_proven_in_rational_arithmetic(kind):
    for m, n in SIZES:
        scores = draw(kind, (m, 3 * m), 1)
        found = solve_tiles_in_triton(scores.to(DEVICE), m, n)
        mask, rows, columns = (part.cpu() for part in (found.mask, found.row_prices, found.column_prices))
        for (place, tile), (_, cells) in zip(tiles_of(scores, m, m), tiles_of(mask, m, m)):
            assert bool((cells.sum(0) == n).all())
            assert bool((cells.sum(1) == n).all())
            assert rational_gap(tile, cells, rows[place], columns[place], n, n, False) == 0, (m, place)
        assert float(found.gap.max()) == 0
        assert found.kept == pytest.approx(solve_tiles(scores, (m, m), (n, n)).kept, rel=1e-12, abs=1e-300)


def test_leading_dimensions_lead():
    scores = draw("gauss", (2, 4, 4), 0)
    found = solve_tiles_in_triton(scores.to(DEVICE), 4, 2)
    assert found.mask.shape == scores.shape
    assert found.row_prices.shape == (2, 1, 1, 4)


def test_what_is_not_finite_is_named():
    scores = torch.ones(4, 8)
    scores[3, 6] = float("nan")
    with pytest.raises(NumericError, match=r"\[3, 6\]"):
        solve_tiles_in_triton(scores.to(DEVICE), 4, 2)


def test_the_kernels_say_what_they_do_not_take():
    scores = torch.ones(8, 8, dtype=torch.float64)
    assert "float64" in why_not_in_triton(scores, (4, 4), (2, 2))[0]
    assert why_not_in_triton(scores.float(), (4, 8), (4, 2))
    assert why_not_in_triton(scores.float()[:7], (4, 4), (2, 2))
    assert not why_not_in_triton(scores.float(), (4, 4), (2, 2))


@pytest.mark.skipif(INTERPRETED, reason="needs a device")
def test_scores_on_a_device_are_solved_there():
    scores = draw("gauss", (64, 128), 0)
    for count in ("exactly", "at_most"):
        found = solve_mask(scores.cuda(), "8:16t", count, certificate=True)
        assert found.mask.is_cuda
        assert found.kept == pytest.approx(solve_mask(scores, "8:16t", count, certificate=True).kept, rel=1e-12)
