"""What sparsifiers choose on the calibration data by themselves: damping, penalty, method."""

import pytest
import torch
from torch import nn

from sparsewright.core import LayerStats, NumericError
from sparsewright.models import sparsify_
from sparsewright.sparsifiers import alps, reconstruction_error, sparsifiers
from sparsewright.testing.examples import sample_stats, sample_weight


def with_gram(gram: torch.Tensor) -> LayerStats:
    return LayerStats(1, torch.zeros(len(gram)), gram.diagonal().clamp_min(0), gram)


@pytest.mark.parametrize(("smallest", "damping"), [(0.5, 0.01), (-0.05, 0.1), (-0.5, 1.0), (-5.0, 10.0)])
def test_damping_is_raised_until_the_matrix_factorises_and_is_kept_in_the_result(smallest, damping) -> None:
    turned, _ = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    values = torch.full((16,), (16 - smallest) / 15, dtype=torch.float64)
    values[0] = smallest
    stats = with_gram(turned @ values.diag() @ turned.T)
    found = sparsifiers.get("sparsegpt").sparsify(sample_weight((4, 16)), stats, "2:4")
    assert found.settings == {"damping": pytest.approx(damping)}


def test_damping_is_bounded() -> None:
    stats = with_gram(torch.diag(torch.tensor([-100.0] + [7.0] * 15, dtype=torch.float64)))
    with pytest.raises(NumericError, match="10 times its mean diagonal"):
        sparsifiers.get("sparsegpt").sparsify(sample_weight((4, 16)), stats, "2:4")


def low_rank_stats() -> LayerStats:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(8, 64, generator=generator, dtype=torch.float64)
    x += 0.05 * torch.randn(400, 64, generator=generator, dtype=torch.float64)
    return LayerStats(400, x.mean(0), x.square().sum(0), x.T @ x)


def test_rho_follows_the_inputs_and_lowers_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, stats = sample_weight((96, 64)), low_rank_stats()
    chosen = sparsifiers.get("alps").sparsify(weight, stats, "2:4")
    assert chosen.settings["rho"] < 0.03
    assert sparsifiers.get("alps").sparsify(weight, sample_stats(64, tokens=2000), "2:4").settings["rho"] >= 0.01
    monkeypatch.setattr(alps, "_PENALTIES", (0.03,))
    fixed = sparsifiers.get("alps").sparsify(weight, stats, "2:4")
    assert reconstruction_error(weight, chosen.weight, stats) < 0.95 * reconstruction_error(weight, fixed.weight, stats)


def model_and_data() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), [torch.randn(64, 32) for _ in range(2)]


def test_auto_leaves_the_least_error_and_names_its_choice_in_plan_and_result() -> None:
    errors = {}
    for method in ("magnitude", "wanda", "sparsegpt", "alps", "auto"):
        model, data = model_and_data()
        result = sparsify_(model, "2:4", method=method, data=data, include=["0"])
        errors[method] = result.layers["0"].error
    assert errors["auto"] <= min(errors.values())
    chosen = result.layers["0"].sparsifier
    assert chosen in sparsifiers.names()
    assert chosen != "auto"
    assert result.plan.layers["0"].sparsifier == chosen
    assert "damping" in result.layers["0"].settings


def test_auto_without_data_takes_what_needs_none() -> None:
    model, _ = model_and_data()
    result = sparsify_(model, "2:4", method="auto", include=["0"])
    assert result.layers["0"].sparsifier == result.plan.layers["0"].sparsifier == "magnitude"
