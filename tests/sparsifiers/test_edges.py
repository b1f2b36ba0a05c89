"""Widths that are no multiple of M: what the end of a layer cuts off keeps at most as much, or stays dense."""

import pytest
import torch
from torch import nn

from sparsewright.bundle import load, save
from sparsewright.core import PatternError, parse_pattern
from sparsewright.hardware import pack_
from sparsewright.models import layers, sparsify_
from sparsewright.solvers import solve_mask
from sparsewright.sparsifiers import sparsifiers
from sparsewright.testing.examples import sample_scores, sample_stats, sample_weight

CUT = ["2:4", "2:4x4", "8:16t", "1x8@50%", "4x4@25%"]
METHODS = ["magnitude", "wanda", "sparsegpt", "alps"]


def whole_part(pattern: str, mask: torch.Tensor) -> torch.Tensor:
    rows, columns = parse_pattern(pattern).tile
    out, in_ = mask.shape
    return mask[: out // rows * rows, : in_ // columns * columns]


@pytest.mark.parametrize("pattern", CUT)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_at_most_n_of_what_is_cut_off(method: str, pattern: str) -> None:
    weight, stats = sample_weight((36, 43)), sample_stats(43)
    found = sparsifiers.get(method).sparsify(weight, stats, pattern, edge="at_most")
    rule = parse_pattern(pattern)
    assert rule.check_mask(found.mask) == []
    assert bool((found.weight[~found.mask] == 0).all())
    if pattern[1] == ":":
        assert 0 < int(found.mask[:, -3:].sum()) <= 36 * 3


@pytest.mark.parametrize("pattern", CUT)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_dense_edges_whole(method: str, pattern: str) -> None:
    weight, stats = sample_weight((36, 43)), sample_stats(43)
    mask = sparsifiers.get(method).sparsify(weight, stats, pattern, edge="dense").mask
    columns = parse_pattern(pattern).tile[1]
    assert bool(mask[:, 43 // columns * columns :].all())
    assert parse_pattern(pattern).with_edge("dense").check_mask(mask) == []
    assert not bool(whole_part(pattern, mask).all())


def test_whole_groups_are_solved_as_without_an_edge() -> None:
    scores = sample_scores((6, 11))
    mask = solve_mask(scores, "2:4", edge="at_most")
    assert torch.equal(mask[:, :8], solve_mask(scores[:, :8], "2:4"))
    assert bool((mask[:, 8:].sum(1) == 2).all())
    assert bool((mask[:, 8:] == solve_mask(nn.functional.pad(scores[:, 8:], (0, 1)), "2:4")[:, :3]).all())


def test_a_group_cut_shorter_than_n_is_kept_whole_also_for_negative_scores() -> None:
    mask = solve_mask(-sample_scores((5, 9)), "2:4", edge="at_most")
    assert bool(mask[:, 8].all())


def test_the_error_names_the_option() -> None:
    with pytest.raises(PatternError, match="edge='at_most'"):
        sparsify_(_model(), "2:4", include=["0"])


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(43, 36), nn.ReLU(), nn.Linear(36, 43)).eval()


@pytest.mark.parametrize(("pattern", "edge"), [("2:4", "at_most"), ("8:16t", "at_most"), ("8:16t", "dense")])
def test_a_model_with_edges_is_recognised_packed_and_saved(pattern: str, edge: str, tmp_path) -> None:
    model = _model()
    result = sparsify_(model, pattern, include=["0", "2"], edge=edge)  # type: ignore[arg-type]
    by_name = {ref.name: ref for ref in layers(model)}
    for name, layer in result.layers.items():
        mask = by_name[name].get_mask()
        assert mask is not None
        assert layer.pattern == pattern
        assert layer.density == pytest.approx(float(mask.float().mean()))
        assert str(by_name[name].get_pattern()) == pattern
    x = torch.randn(3, 43)
    expected = model(x)
    save(model, tmp_path / "m.safetensors", value_dtype="fp32", plan=result.plan)
    loaded = load(tmp_path / "m.safetensors", model=_model())
    assert torch.allclose(loaded(x), expected, atol=1e-5)
    rows = pack_(model, plan=result.plan, force=True)
    assert all(row.packed for row in rows)
    assert torch.allclose(model(x), expected, atol=1e-5)
