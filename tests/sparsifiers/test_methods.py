"""What sets the sparsifiers apart: balance, correction, least squares, the error they leave."""

import weakref

import pytest
import torch

from sparsewright.core import LayerStats, NumericError, parse_pattern
from sparsewright.sparsifiers import factors_used_once, reconstruct, reconstruction_error, sparsifiers
from sparsewright.sparsifiers.gram import damped_gram, factors
from sparsewright.sparsifiers.reconstruct import solve_kept
from sparsewright.testing import sample_stats

PATTERNS = ["2:4", "1:4", "2:4x4", "50%", "25%", "4x1@50%", "4x4@25%"]


def _weight(out: int, in_: int) -> torch.Tensor:
    return torch.randn(out, in_, generator=torch.Generator().manual_seed(2))


def _error(name: str, weight: torch.Tensor, stats: LayerStats, pattern: str) -> float:
    return reconstruction_error(weight, sparsifiers.get(name).sparsify(weight, stats, pattern).weight, stats)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_data_lower_the_error_and_correction_lowers_it_further(pattern: str) -> None:
    weight, stats = _weight(64, 256), sample_stats(256, tokens=2000)
    magnitude, wanda, sparsegpt = (_error(name, weight, stats, pattern) for name in ("magnitude", "wanda", "sparsegpt"))
    assert sparsegpt < 0.8 * wanda
    assert wanda < magnitude


@pytest.mark.parametrize("pattern", PATTERNS)
def test_alternating_never_leaves_more_error_than_its_start(pattern: str) -> None:
    weight, stats = _weight(48, 128), sample_stats(128, tokens=1000)
    assert _error("alps", weight, stats, pattern) <= 1.001 * _error("sparsegpt", weight, stats, pattern)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_alternating_does_not_depend_on_the_size_of_weights_and_inputs(factor: float) -> None:
    weight, stats = _weight(16, 64), sample_stats(64)
    assert stats.gram is not None
    larger = LayerStats(stats.tokens, stats.mean, stats.square_sum * factor, stats.gram * factor)
    alps = sparsifiers.get("alps")
    expected = alps.sparsify(weight, stats, "2:4").mask
    mask = alps.sparsify(weight * factor, larger, "2:4").mask
    assert float((mask == expected).float().mean()) > 0.99


def test_magnitude_keeps_the_largest_weights_as_they_are() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    result = sparsifiers.get("magnitude").sparsify(weight, None, "2:4")
    assert result.weight.tolist() == [[0.0, -3.0, 2.0, 0.0]]


def test_wanda_weighs_magnitudes_by_the_norm_of_the_inputs() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    stats = LayerStats(1, torch.zeros(4), torch.tensor([100.0, 1.0, 1.0, 100.0]))
    assert sparsifiers.get("wanda").sparsify(weight, stats, "2:4").weight.tolist() == [[1.0, 0.0, 0.0, 0.5]]


@pytest.mark.parametrize(("out", "in_", "text"), [(7, 13, "50%"), (5, 3, "10%"), (3, 8, "99%"), (64, 96, "33%")])
def test_wanda_balances_unstructured_rows_and_keeps_the_exact_total(out: int, in_: int, text: str) -> None:
    pattern = parse_pattern(text)
    mask = sparsifiers.get("wanda").sparsify(_weight(out, in_), sample_stats(in_), text).mask
    rows = mask.sum(1)
    assert int(rows.sum()) == pattern.kept_weights((out, in_))  # type: ignore[attr-defined]
    assert int(rows.max() - rows.min()) <= 1


def test_least_squares_on_the_kept_weights_reach_the_exact_optimum() -> None:
    weight, stats = _weight(6, 24).double(), sample_stats(24)
    mask = sparsifiers.get("wanda").sparsify(weight, stats, "50%").mask
    gram = damped_gram(stats)
    exact = torch.zeros_like(weight)
    for row in range(6):
        kept = mask[row].nonzero()[:, 0]
        exact[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
    solved = solve_kept(torch.where(mask, weight, 0), mask, weight, gram, steps=60)
    assert torch.allclose(solved, exact, atol=1e-8)


def test_every_step_of_the_reconstruction_lowers_the_error() -> None:
    weight, stats = _weight(32, 128), sample_stats(128, tokens=1000)
    start = sparsifiers.get("wanda").sparsify(weight, stats, "2:4x4")
    errors = [
        reconstruction_error(weight, reconstruct(start.weight, start.mask, weight, stats, steps, damping=1e-9), stats)
        for steps in (0, 1, 2, 5, 10, 20)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_reconstruction_leaves_a_solved_layer_and_a_layer_that_keeps_nothing_alone() -> None:
    weight, stats = _weight(4, 16), sample_stats(16)
    everything = torch.ones(4, 16, dtype=torch.bool)
    assert torch.equal(reconstruct(weight, everything, weight, stats), weight)
    assert not reconstruct(weight, ~everything, weight, stats).any()


def test_the_reconstruction_error_is_the_share_of_output_energy_that_is_lost() -> None:
    inputs = torch.randn(300, 8, dtype=torch.float64)
    stats = LayerStats(300, inputs.mean(0), inputs.square().sum(0), inputs.T @ inputs)
    dense, sparse = _weight(5, 8).double(), _weight(5, 8).double() * 0.9
    expected = float(((dense - sparse) @ inputs.T).square().sum() / (dense @ inputs.T).square().sum())
    assert reconstruction_error(dense, sparse, stats) == pytest.approx(expected)
    assert reconstruction_error(dense, dense, stats) == 0
    assert reconstruction_error(torch.zeros(5, 8), dense, stats) == 0


def test_sparsegpt_spreads_a_count_over_columns_by_their_worth() -> None:
    # The second half of the inputs hardly ever fires: equal shares would waste half of the weights on it.
    scale = torch.cat([torch.ones(128), torch.full((128,), 1e-3)]).double()
    inputs = torch.randn(1000, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    stats = LayerStats(1000, inputs.mean(0), inputs.square().sum(0), inputs.T @ inputs)
    for pattern in ("50%", "4x1@50%"):
        mask = sparsifiers.get("sparsegpt").sparsify(_weight(16, 256), stats, pattern).mask
        assert int(mask[:, :128].sum()) > 0.9 * 16 * 128, pattern


def test_a_matrix_that_is_no_gram_matrix_is_refused_by_layer() -> None:
    gram = -torch.eye(8, dtype=torch.float64)
    stats = LayerStats(1, torch.zeros(8), torch.ones(8), gram)
    with pytest.raises(NumericError, match=r"encoder\.fc1.*positive definite"):
        sparsifiers.get("sparsegpt").sparsify(_weight(4, 8), stats, "2:4", layer="encoder.fc1")


def test_factors_are_kept_as_long_as_their_gram_matrix_lives() -> None:
    stats = sample_stats(32)
    kept = weakref.ref(factors(stats, "a layer", torch.device("cpu")).upper)
    assert factors(stats, "a layer", torch.device("cpu")).upper is kept()
    del stats
    assert kept() is None


def test_factors_that_are_used_once_are_not_kept() -> None:
    stats = sample_stats(32)
    with factors_used_once():
        found = weakref.ref(factors(stats, "a layer", torch.device("cpu")).upper)
    assert found() is None


def test_a_damped_gram_matrix_is_the_rounded_one_in_single_precision() -> None:
    stats = sample_stats(300)
    assert torch.equal(damped_gram(stats, dtype=torch.float32), damped_gram(stats).float())
    assert stats.gram is not None
    plain = stats.gram / stats.tokens
    ridge = 0.01 * plain.diagonal().mean()
    torch.testing.assert_close(damped_gram(stats), plain + ridge * torch.eye(300, dtype=torch.float64))


def test_least_squares_leave_what_they_are_given_as_it_is() -> None:
    torch.manual_seed(0)
    weight, mask = torch.randn(300, 32, dtype=torch.float64), torch.rand(300, 32) < 0.5
    dense, gram = torch.randn(300, 32, dtype=torch.float64), torch.eye(32, dtype=torch.float64)
    given = [each.clone() for each in (weight, mask, dense, gram)]
    solve_kept(weight, mask, dense, gram)
    assert all(torch.equal(now, before) for now, before in zip((weight, mask, dense, gram), given))
