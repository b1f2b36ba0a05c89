"""Channel permutations never lower the kept sum, and the mask obeys the pattern in the new order."""

import pytest
import torch

from sparsewright.core import NumericError, PatternError, parse_pattern
from sparsewright.solvers import permute_channels, solve_mask


def _skewed(out: int, in_: int) -> torch.Tensor:
    """Scores whose large channels lie side by side: the worst order for tiles."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.1, in_)
    return torch.rand(out, in_, generator=generator) * scale * torch.linspace(2, 0.1, out)[:, None]


@pytest.mark.parametrize("text", ["2:4", "1:4", "2:4x4", "2:4t", "4:8t", "2:4tx2"])
@pytest.mark.parametrize("axis", ["in", "out", "both"])
def test_the_mask_obeys_in_the_new_order_and_keeps_no_less(text: str, axis: str) -> None:
    scores = _skewed(32, 48)
    found = permute_channels(scores, text, axis, rounds=20)
    pattern = parse_pattern(text)
    assert sorted(found.rows.tolist()) == list(range(32))
    assert sorted(found.columns.tolist()) == list(range(48))
    assert not pattern.check_mask(found.mask[found.rows][:, found.columns])
    before = solve_mask(scores, text)
    assert found.kept_before == pytest.approx(float(scores.double()[before].sum()), rel=1e-12)
    assert found.kept == pytest.approx(float(scores.double()[found.mask].sum()), rel=1e-12)
    assert found.kept >= found.kept_before
    if axis == "in":
        assert torch.equal(found.rows, torch.arange(32))


def test_crowded_columns_are_spread_over_tiles() -> None:
    # Each tile of 4 columns is all large or all small: half of the large ones have to go, until they are spread.
    scores = torch.tensor([1.0] * 4 + [0.0] * 4).repeat(8, 2)
    found = permute_channels(scores, "2:4", "in", rounds=30)
    assert found.kept_before == 32
    assert found.kept == 64


def test_the_same_seed_gives_the_same_order_and_no_rounds_leave_it() -> None:
    scores = torch.rand(16, 32)
    first, again = (permute_channels(scores, "2:4t", rounds=10, seed=3) for _ in range(2))
    assert torch.equal(first.columns, again.columns)
    assert torch.equal(first.rows, again.rows)
    still = permute_channels(scores, "2:4t", rounds=0)
    assert torch.equal(still.mask, solve_mask(scores, "2:4t"))
    assert torch.equal(still.columns, torch.arange(32))


def test_mistakes_are_told() -> None:
    with pytest.raises(PatternError, match="no tiles"):
        permute_channels(torch.rand(8, 8), "50%")
    with pytest.raises(PatternError, match="axis is"):
        permute_channels(torch.rand(8, 8), "2:4", "rows")  # type: ignore[arg-type]
    with pytest.raises(PatternError, match="rounds is a whole number"):
        permute_channels(torch.rand(8, 8), "2:4", rounds=-1)
    with pytest.raises(PatternError, match="multiple of 4"):
        permute_channels(torch.rand(8, 6), "2:4")
    with pytest.raises(PatternError, match=r"got scores of shape \(2, 16, 16\)"):
        permute_channels(torch.rand(2, 16, 16), "2:4t")
    with pytest.raises(NumericError):
        permute_channels(torch.full((8, 8), float("nan")), "2:4t")
