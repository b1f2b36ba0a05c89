"""Learned masks: better than the prior where choices are counted up, never worse, the same at every run."""

import math

import pytest
import torch

from sparsewright.core import parse_pattern
from sparsewright.sparsifiers import learned, reconstruction_error, sparsifiers
from sparsewright.testing.examples import sample_stats, sample_weight


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "2:4t", "50%"])
def test_learning_lowers_the_error_of_its_prior(pattern: str) -> None:
    weight, stats = sample_weight((48, 96)), sample_stats(96, tokens=1000)
    prior, found = (sparsifiers.get(name).sparsify(weight, stats, pattern) for name in ("sparsegpt", "learned"))
    ours, theirs = (reconstruction_error(weight, result.weight, stats) for result in (found, prior))
    assert ours < 0.99 * theirs
    assert not torch.equal(found.mask, prior.mask)


@pytest.mark.parametrize("pattern", ["8:16t", "3:6:4", "4x4@25%"])
def test_it_never_gives_back_worse_than_its_prior(pattern: str) -> None:
    weight, stats = sample_weight((32, 96)), sample_stats(96)
    prior, found = (sparsifiers.get(name).sparsify(weight, stats, pattern) for name in ("sparsegpt", "learned"))
    assert reconstruction_error(weight, found.weight, stats) <= 1.001 * reconstruction_error(
        weight, prior.weight, stats
    )


def test_every_lawful_tile_is_a_choice() -> None:
    for text, count in (("2:4", 6), ("4:8", 70), ("1:4t", 24), ("2:4t", 90), ("3:4t", 24)):
        tiles, _ = learned._lawful_tiles(parse_pattern(text), (8, 8))
        assert tiles is not None
        assert len(tiles) == len(torch.unique(tiles.flatten(1), dim=0)) == count
        assert all(parse_pattern(text).check_mask(tile > 0) == [] for tile in tiles)
    assert learned._lawful_tiles(parse_pattern("8:16"), (8, 16))[0] is None
    assert math.comb(16, 8) > 70


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        sparsifiers.get("learned").sparsify(sample_weight((8, 16)), sample_stats(16), "2:4")
    assert torch.equal(torch.rand(3), expected)
