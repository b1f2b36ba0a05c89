"""Transposable masks: exact, proven by prices that rational arithmetic accepts, the same whatever the threads."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transposable_checks import KINDS, ROUNDED, best_sum, draw, rational_gap, tiles_of

from sparsewright.core import NumericError, PatternError
from sparsewright.solvers import MaskSolution, solve_mask, solve_tiles
from sparsewright.solvers.transposable_torch import solve_tiles_in_torch

SIZES = ((4, 2), (4, 1), (4, 3), (8, 4), (8, 3), (16, 8), (32, 16), (2, 1), (3, 2), (5, 2), (7, 3), (12, 5), (20, 7))
COUNTS = ("exactly", "at_most")


def native(scores, m, n, count):
    return solve_tiles(scores, (m, m), (n, n), count)


def in_torch(scores, m, n, count):
    return solve_tiles_in_torch(scores, (m, m), (n, n), count, "error")


def assert_proven(scores, found: MaskSolution, m: int, n: int, count: str, tolerance: Fraction = Fraction(0)):
    for (place, tile), (_, mask) in zip(tiles_of(scores, m, m), tiles_of(found.mask, m, m)):
        loose = count == "at_most" or tile.shape != (m, m)
        for sums in (mask.sum(0), mask.sum(1)):
            assert bool((sums <= n).all())
            assert loose or bool((sums == n).all())
        gap = rational_gap(tile, mask, found.row_prices[place], found.column_prices[place], n, n, loose)
        assert 0 <= gap <= tolerance, f"tile {place}"
        assert float(found.gap[place]) <= float(tolerance)


@pytest.mark.parametrize("solve", [native, in_torch])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_prices_prove_every_tile_in_rational_arithmetic(solve, count, kind):
    for m, n in SIZES:
        if solve is in_torch and m > 16:
            continue
        scores = draw(kind, (m, 2 * m), seed=m)
        found = solve(scores, m, n, count)
        tolerance = Fraction(1e-12) * Fraction(found.kept if kind in ROUNDED else 0)
        assert_proven(scores, found, m, n, count, abs(tolerance))
        assert found.kept == pytest.approx(float((scores.double() * found.mask).sum()), rel=1e-12)
        if count == "at_most":
            assert not bool((found.mask & (scores <= 0)).any())


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind not in ("subnormal", "near the largest double", "wide")]),
    size=st.sampled_from(SIZES[:10]),
    count=st.sampled_from(COUNTS),
    seed=st.integers(0, 10**6),
    solve=st.sampled_from([native, in_torch]),
)
def test_no_mask_keeps_more_says_a_solver_of_another_kind(kind, size, count, seed, solve):
    m, n = size
    scores = draw(kind, (m, m), seed)
    largest = max(1e-30, float(scores.double().abs().max()))
    best = best_sum(scores.double() / largest, n, n, count == "at_most")
    assert solve(scores, m, n, count).kept / largest == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_four_by_four_tiles_are_the_best_of_all_masks(n):
    rows = [row for row in product((False, True), repeat=4) if sum(row) == n]
    every = torch.tensor(list(product(rows, repeat=4)))
    every = every[(every.sum(1) == n).all(1)].double()
    scores = torch.cat([draw(kind, (256, 64), 3).double() for kind in ("gauss", "eight levels", "signed")])
    tiles = scores.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2).reshape(-1, 16)
    best = (tiles @ every.flatten(1).T).amax(1)
    kept = torch.where(solve_mask(scores, f"{n}:4t"), scores, 0)
    kept = kept.unflatten(0, (-1, 4)).sum(1).unflatten(1, (-1, 4)).sum(2).flatten()
    assert torch.allclose(kept, best, atol=1e-12)


@pytest.mark.parametrize("m,n", [(4, 2), (8, 4), (16, 8), (32, 16)])
def test_a_mask_with_one_swap_made_wrong_is_caught(m, n):
    scores = draw("gauss", (m, m), 1)
    found = native(scores, m, n, "exactly")
    mask = found.mask.clone()
    # Two rows and two columns that cross: counts stay as they are.
    i, k = 0, 1
    j = int((mask[i] & ~mask[k]).nonzero()[0])
    last = int((~mask[i] & mask[k]).nonzero()[0])
    mask[i, j] = mask[k, last] = False
    mask[i, last] = mask[k, j] = True
    assert bool((mask.sum(0) == n).all())
    assert bool((mask.sum(1) == n).all())
    prices = found.row_prices[0, 0], found.column_prices[0, 0]
    assert rational_gap(scores, mask, *prices, n, n, False) > 0


def test_the_gap_of_the_paper_between_exactly_and_at_most():
    scores = draw("low rank", (512, 512), 0)
    exactly, at_most = (solve_mask(scores, "8:16t", count, certificate=True) for count in COUNTS)
    assert at_most.kept > exactly.kept
    assert int(at_most.mask.sum()) < int(exactly.mask.sum())


@pytest.mark.parametrize("kind", ["gauss", "eight levels", "seventy percent zeros", "bfloat16"])
@pytest.mark.parametrize("m,n", [(4, 2), (8, 4), (16, 8), (32, 16), (12, 5)])
@pytest.mark.parametrize("count", COUNTS)
def test_neither_threads_nor_strides_nor_batches_nor_the_order_of_tiles_change_the_mask(kind, m, n, count):
    scores = draw(kind, (8 * m, 9 * m), 2)
    mask = native(scores, m, n, count).mask
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        wide = scores.repeat(1, 1 + (1 << 19) // scores.numel())
        again = solve_tiles(wide, (m, m), (n, n), count, certificate=False).mask
        assert torch.equal(again[:, : 9 * m], mask)
        assert torch.equal(again[:, -9 * m :], mask)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(native(scores.T.contiguous().T, m, n, count).mask, mask)
    assert torch.equal(native(scores[:, 3 * m : 4 * m], m, n, count).mask, mask[:, 3 * m : 4 * m])
    experts = torch.stack([scores, scores.flip(0)])[:, None]
    assert torch.equal(native(experts, m, n, count).mask[0, 0], mask)
    assert torch.equal(native(scores.double(), m, n, count).mask, mask)
    halves = [native(rows, m, n, count).mask for rows in scores.split(4 * m)]
    assert torch.equal(torch.cat(halves), mask)


@pytest.mark.parametrize("m,n", [(4, 2), (8, 4), (16, 8), (32, 16)])
@pytest.mark.parametrize("count", COUNTS)
def test_powers_of_two_and_permutations_leave_the_kept_sum_unchanged(m, n, count):
    scores = draw("gauss", (m, m), 4)

    def kept(of):
        return sum(Fraction(float(v)) for v in of[native(of, m, n, count).mask])

    truth = kept(scores)
    for power in (-130, -30, 3, 120):
        shifted = torch.ldexp(scores.double(), torch.tensor(power)).float()
        if bool((shifted.double() == torch.ldexp(scores.double(), torch.tensor(power))).all()):
            assert kept(shifted) == truth * Fraction(2) ** power
    order = torch.randperm(m, generator=torch.Generator().manual_seed(1))
    assert kept(scores[order]) == truth
    assert kept(scores[:, order]) == truth
    assert kept(scores.T) == truth


@pytest.mark.parametrize("m,n", [(4, 2), (8, 4), (16, 8), (32, 16), (7, 3)])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("solver", ["native", "torch"])
def test_an_earlier_solution_is_a_good_start_and_changes_nothing_that_counts(m, n, count, solver):
    scores = draw("gauss", (4 * m, 4 * m), 0)
    nearby = scores * (1 + 0.01 * draw("signed", (4 * m, 4 * m), 1))
    earlier = native(nearby, m, n, count)
    if solver == "native":
        found = solve_tiles(scores, (m, m), (n, n), count, start=earlier)
    else:
        found = solve_tiles_in_torch(scores, (m, m), (n, n), count, "error", first=earlier.column_prices)
    assert_proven(scores, found, m, n, count)
    assert found.kept == pytest.approx(native(scores, m, n, count).kept, rel=1e-12)


@pytest.mark.parametrize(
    "rows,columns,row_keep,column_keep", [(4, 8, 4, 2), (6, 3, 1, 2), (2, 64, 32, 1), (64, 16, 4, 16)]
)
def test_tiles_need_not_be_square(rows, columns, row_keep, column_keep):
    scores = draw("gauss", (rows, 2 * columns), 0)
    found = solve_tiles(scores, (rows, columns), (row_keep, column_keep))
    for (place, tile), (_, mask) in zip(tiles_of(scores, rows, columns), tiles_of(found.mask, rows, columns)):
        assert bool((mask.sum(1) == row_keep).all())
        assert bool((mask.sum(0) == column_keep).all())
        prices = found.row_prices[place], found.column_prices[place]
        assert rational_gap(tile, mask, *prices, row_keep, column_keep, False) == 0
    other = solve_tiles_in_torch(scores, (rows, columns), (row_keep, column_keep), "exactly", "error")
    assert other.kept == pytest.approx(found.kept, rel=1e-12)


@given(
    kind=st.sampled_from(["gauss", "eight levels", "signed", "low rank"]),
    form=st.sampled_from([(4, 4, 2, 2), (8, 8, 4, 4), (4, 8, 4, 2), (16, 16, 8, 8)]),
    count=st.sampled_from(COUNTS),
    forced=st.floats(0, 0.3),
    seed=st.integers(0, 10**6),
    solver=st.sampled_from(["native", "torch"]),
)
def test_forced_cells_stay_or_go_and_the_rest_is_still_the_best(kind, form, count, forced, seed, solver):
    rows, columns, row_keep, column_keep = form
    scores = draw(kind, (rows, columns), seed)
    chance = draw("gauss", (2, rows, columns), seed + 1) / 3
    keep = chance[0] < forced / 2
    drop = (chance[1] < forced) & ~keep
    best = best_sum(scores, row_keep, column_keep, count == "at_most", keep, drop)

    def found():
        if solver == "native":
            return solve_tiles(scores, (rows, columns), (row_keep, column_keep), count, keep=keep, drop=drop)
        return solve_tiles_in_torch(scores, (rows, columns), (row_keep, column_keep), count, "error", keep, drop)

    if best is None:
        with pytest.raises(PatternError, match=r"tile \[0, 0\] cannot have its count in (row|column) \d+"):
            found()
        return
    solution = found()
    assert bool(solution.mask[keep].all())
    assert not bool(solution.mask[drop].any())
    assert solution.kept == pytest.approx(best, abs=1e-6)
    assert float(solution.gap.max()) == 0


def test_levels_nest():
    scores = draw("gauss", (64, 64), 0)
    dense = solve_mask(scores, "4:8t")
    sparse = solve_mask(scores, "2:8t", drop=~dense)
    assert bool((dense | ~sparse).all())
    upward = solve_mask(scores, "4:8t", keep=solve_mask(scores, "2:8t"))
    assert bool((upward | ~solve_mask(scores, "2:8t")).all())


@pytest.mark.parametrize("shape", [(10, 13), (3, 3), (9, 8), (8, 9), (33, 64)])
@pytest.mark.parametrize("m,n", [(4, 2), (8, 4), (16, 8)])
def test_edges(shape, m, n):
    scores = draw("gauss", shape, 0)
    text = f"{n}:{m}t"
    found = solve_mask(scores, text, edge="at_most", certificate=True)
    assert_proven(scores, found, m, n, "exactly")
    assert found.gap.shape == (-(-shape[0] // m), -(-shape[1] // m))
    dense = solve_mask(scores, text, edge="dense")
    whole = torch.zeros(shape, dtype=torch.bool)
    whole[: shape[0] // m * m, : shape[1] // m * m] = True
    assert torch.equal(dense[whole], found.mask[whole])
    assert bool(dense[~whole].all())
    with pytest.raises(PatternError, match="multiple"):
        solve_mask(scores, text)
    for edge in ("at_most", "dense"):
        other = solve_tiles_in_torch(scores, (m, m), (n, n), "exactly", edge)
        assert other.kept == pytest.approx(solve_mask(scores, text, edge=edge, certificate=True).kept, rel=1e-12)


def test_a_convolution_is_solved_through_a_view_of_its_weight():
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    # (kh, kw, out, channels): each place of the kernel is a matrix of its own.
    mask = solve_mask(weight.abs().permute(2, 3, 0, 1), "4:8t").permute(2, 3, 0, 1)
    assert mask.shape == weight.shape
    assert bool((mask.unflatten(1, (-1, 8)).sum(2) == 4).all())
    assert bool((mask.unflatten(0, (-1, 8)).sum(1) == 4).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("text", ["2:4t", "4:8t", "8:16t", "16:32t", "3:5t"])
def test_scores_that_are_not_finite_are_named(bad, text):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        scores = torch.ones(160, 480, dtype=dtype)
        scores[155, 477] = bad
        with pytest.raises(NumericError, match=r"\[155, 477\]"):
            solve_mask(scores, text)
    edge = torch.ones(9, 9)
    edge[8, 8] = bad
    for how in ("at_most", "dense"):
        with pytest.raises(NumericError, match=r"\[8, 8\]"):
            solve_mask(edge, text, edge=how)


def test_bad_arguments_are_told_in_a_sentence():
    scores = torch.ones(8, 8)
    with pytest.raises(PatternError, match="32 and 16 cells"):
        solve_tiles(scores, (8, 8), (4, 2))
    with pytest.raises(PatternError, match="1 to 64"):
        solve_tiles(scores, (65, 65), (4, 4))
    with pytest.raises(PatternError, match="columns 0 to 4"):
        solve_tiles(scores, (4, 4), (5, 5))
    with pytest.raises(PatternError, match="edge is"):
        solve_mask(scores, "2:4t", edge="round")
    with pytest.raises(PatternError, match="bool tensor"):
        solve_mask(scores, "2:4t", keep=torch.ones(8, 8))
    with pytest.raises(PatternError, match="column prices"):
        solve_mask(scores, "2:4t", start=solve_mask(torch.ones(16, 8), "2:4t", certificate=True))
    with pytest.raises(PatternError, match="without certificates"):
        solve_mask(scores, "2:4", certificate=True)
    with pytest.raises(PatternError, match="at most 64"):
        solve_mask(torch.ones(128, 128), "40:80t")
    with pytest.raises(PatternError, match="without a rest"):
        solve_tiles(torch.ones(9, 8), (8, 8), (4, 4), edge="error")


BITS = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from transposable_checks import draw
from sparsewright.solvers import solve_tiles
bits = hashlib.sha256()
for kind in ("gauss", "low rank", "eight levels", "seventy percent zeros", "wide", "bfloat16", "subnormal"):
    for m, n in ((4, 2), (8, 4), (16, 8), (32, 16), (12, 5)):
        for count in ("exactly", "at_most"):
            found = solve_tiles(draw(kind, (3 * m, 5 * m), 7), (m, m), (n, n), count)
            for part in (found.mask, found.gap, found.row_prices, found.column_prices):
                bits.update(part.numpy().tobytes())
print(bits.hexdigest())
"""


def test_all_instruction_sets_give_the_same_bits(monkeypatch):
    from sparsewright._native import instruction_sets

    told = set()
    for name in instruction_sets():
        monkeypatch.setenv("SPARSEWRIGHT_ISA", name)
        command = [sys.executable, "-c", BITS, __file__.rsplit("/", 1)[0]]
        told.add(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(told) == 1


def test_a_thread_that_flushes_subnormal_numbers_counts_them_all_the_same():
    scores = draw("subnormal", (32, 32), 0)
    truth = solve_mask(scores, "8:16t", certificate=True)
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush subnormal numbers")
        found = solve_mask(scores, "8:16t", certificate=True)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found.mask, truth.mask)
    assert found.kept == truth.kept


@pytest.mark.parametrize("never", [-1e15, -1e17, -1e20, -1e30])
@pytest.mark.parametrize("m,n", [(4, 1), (4, 2), (8, 4), (16, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_mean_never_do_not_cost_the_others_their_precision(never, m, n, dtype):
    whole = (100 * draw("gauss", (m, 6 * m), 0)).round()
    forbidden = draw("gauss", (m, 6 * m), 1) < 0.2
    for count in COUNTS:
        found = solve_tiles(torch.where(forbidden, never, whole).to(dtype), (m, m), (n, n), count)
        for (place, tile), (_, mask) in zip(tiles_of(whole, m, m), tiles_of(found.mask, m, m)):
            drop = forbidden[:, place[1] * m : (place[1] + 1) * m]
            best = best_sum(tile, n, n, count == "at_most", drop=drop)
            if best is not None:
                assert float(tile[mask].sum()) == pytest.approx(best, abs=1e-6)
                assert not bool((mask & drop).any())


@pytest.mark.parametrize("factor", [1e15, 1e20, 1e300, -1e18, 0.0])
@pytest.mark.parametrize("m,n", [(4, 2), (8, 4), (16, 8), (12, 5)])
@pytest.mark.parametrize("count", COUNTS)
def test_a_start_from_far_away_is_still_exact(factor, m, n, count):
    scores = draw("gauss", (2 * m, 3 * m), 0)
    truth = native(scores, m, n, count)
    far = replace(truth, column_prices=truth.column_prices * factor)
    assert_proven(scores, solve_tiles(scores, (m, m), (n, n), count, start=far), m, n, count)
    other = solve_tiles_in_torch(scores, (m, m), (n, n), count, "error", first=far.column_prices)
    assert_proven(scores, other, m, n, count)


@pytest.mark.parametrize("m,n", [(4, 2), (8, 4), (16, 8), (32, 16), (7, 3)])
@pytest.mark.parametrize("count", COUNTS)
def test_a_start_leaves_masks_independent_of_threads_and_neighbours(m, n, count):
    scores = draw("eight levels", (m, 32 * m), 0)
    start = native(scores, m, n, count)
    whole = solve_tiles(scores, (m, m), (n, n), count, start=start).mask
    for at in range(0, 32, 5):
        columns = slice(at * m, (at + 1) * m)
        alone = native(scores[:, columns], m, n, count)
        alone = replace(alone, column_prices=start.column_prices[:, at : at + 1])
        again = solve_tiles(scores[:, columns], (m, m), (n, n), count, start=alone).mask
        assert torch.equal(again, whole[:, columns])


@pytest.mark.parametrize("power", [-1074, -1070, -1060, 960])
def test_doubles_at_the_ends_of_their_range_are_solved_in_torch_too(power):
    whole = torch.tensor([[5, 1, 4, 7], [2, 6, 3, 3], [7, 8, 8, 1], [2, 9, 3, 1]]).double()
    scores = whole * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)
    for count in COUNTS:
        found = in_torch(scores, 4, 2, count)
        assert float(whole[found.mask].sum()) == float(whole[native(whole, 4, 2, count).mask].sum())


def test_negated_views_default_devices_and_tensors_without_values():
    view = torch.randn(8, 8, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0)).conj().imag
    assert view.is_neg()
    assert torch.equal(solve_mask(view, "2:4t"), solve_mask(view.clone(), "2:4t"))
    scores = torch.rand(8, 8)
    truth = solve_mask(scores, "2:4t")
    with torch.device("meta"):
        assert torch.equal(solve_mask(scores, "2:4t"), truth)
        assert solve_mask(scores, "2:4t", certificate=True).gap.device.type == "cpu"
    for odd in (torch.empty(8, 8, device="meta"), scores.to_sparse(), torch._efficientzerotensor((8, 8))):
        for certificate in (True, False):
            with pytest.raises(PatternError, match="Scores"):
                solve_mask(odd, "2:4t", certificate=certificate)
    with pytest.raises(PatternError, match=r"keep is a bool tensor.*on their device cpu"):
        solve_mask(scores, "2:4t", keep=torch.ones(8, 8, dtype=torch.bool, device="meta"))


def test_dense_edges_obey_forced_cells():
    scores = torch.arange(1.0, 37).reshape(6, 6)
    drop = torch.zeros(6, 6, dtype=torch.bool)
    drop[5, 5] = True
    found = solve_tiles(scores, (4, 4), (2, 2), edge="dense", drop=drop)
    assert found.kept == float(scores[found.mask].sum())
    assert not bool(found.mask[5, 5])
    assert solve_tiles_in_torch(scores, (4, 4), (2, 2), "exactly", "dense", drop=drop).kept == found.kept
    with pytest.raises(PatternError, match=r"tile \[1, 1\]"):
        solve_tiles(scores, (4, 4), (2, 2), edge="dense", keep=drop, drop=drop)


def test_more_bad_arguments_are_told_in_a_sentence():
    scores = torch.ones(8, 8)
    for keyword in ("keep", "drop", "start"):
        with pytest.raises(PatternError, match=f"{keyword} is"):
            solve_mask(scores, "2:4t", **{keyword: (1, 2)})
    for tile in (4, (4.0, 4.0), (4, 4, 4)):
        with pytest.raises(PatternError, match="two whole numbers"):
            solve_tiles(scores, tile, (2, 2))
    with pytest.raises(PatternError, match="matrix"):
        solve_mask(torch.ones(2, 8, 8), "2:4")
    with pytest.raises(PatternError, match="count is"):
        solve_mask(scores, "dense", "x")
    with pytest.raises(PatternError, match="Take the solver 'transposable'"):
        solve_mask(scores, "2:4t", solver="tsenor", certificate=True)


@pytest.mark.parametrize("factor", [1e-40, 1.0, 1e37])
def test_the_scale_of_scores_is_nothing_to_tsenor(factor):
    scores = draw("gauss", (32, 32), 0).double()
    assert torch.equal(
        solve_mask(scores * factor, "4:8t", solver="tsenor"), solve_mask(scores, "4:8t", solver="tsenor")
    )
