"""Tensor sparsifiers obey their laws, and their kind decides what may be inline."""

from typing import Any

import pytest
import torch

from sparsewright.core import PatternError, RegistryError, parse_pattern
from sparsewright.nn import (
    AbstractTensorSparsifier,
    BlockFraction,
    GlobalFraction,
    KeepAll,
    Kind,
    NOfM,
    PatternFraction,
    RandomFraction,
    SparseFormat,
    SparseTensor,
    Threshold,
)
from sparsewright.nn.sparse_format import format_of

EVERY = [
    KeepAll(),
    Threshold(0.5),
    RandomFraction(0.3),
    NOfM(2, 4),
    BlockFraction(0.25, 8),
    GlobalFraction(0.1),
    PatternFraction(parse_pattern("2:4x2")),
]


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sparsifier", EVERY, ids=str)
@pytest.mark.parametrize("shape", [(16,), (4, 16), (2, 6, 16)])
def test_what_is_kept_stays_as_it_is_and_the_rest_is_zero(
    sparsifier: AbstractTensorSparsifier, shape: tuple[int, ...]
) -> None:
    x = tensor(*shape)
    torch.manual_seed(1)
    keep = sparsifier.keep(x)
    torch.manual_seed(1)
    assert keep.shape == x.shape
    assert keep.dtype == torch.bool
    assert torch.equal(sparsifier(x), torch.where(keep, x, 0))


@pytest.mark.parametrize("sparsifier", [each for each in EVERY if each.kind.may_be_inline], ids=str)
def test_a_sparsifier_that_may_be_inline_chooses_alike_part_by_part(sparsifier: AbstractTensorSparsifier) -> None:
    if isinstance(sparsifier, RandomFraction):
        pytest.skip("random: the same distribution, not the same draw")
    x = tensor(6, 16)
    assert torch.equal(torch.cat([sparsifier(part) for part in x.split([1, 3, 2])]), sparsifier(x))


def test_the_whole_tensor_matters_to_a_materializing_one() -> None:
    x = torch.cat([tensor(2, 16), 10 * tensor(2, 16)])
    whole, parts = GlobalFraction(0.25)(x), torch.cat([GlobalFraction(0.25)(part) for part in x.split(2)])
    assert not torch.equal(whole, parts)


@pytest.mark.parametrize("sparsifier", EVERY, ids=str)
def test_gradients_pass_where_it_keeps(sparsifier: AbstractTensorSparsifier) -> None:
    x = tensor(4, 16).requires_grad_()
    torch.manual_seed(1)
    y = sparsifier(x)
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0).float())


def test_counts_are_exact() -> None:
    x = tensor(8, 32)
    assert int(GlobalFraction(0.1).keep(x).sum()) == round(0.1 * x.numel())
    assert NOfM(1, 8).keep(x).unflatten(-1, (-1, 8)).sum(-1).unique().tolist() == [1]
    assert BlockFraction(0.25, 16).keep(x).unflatten(-1, (-1, 16)).sum(-1).unique().tolist() == [4]
    assert 0.2 < float(RandomFraction(0.3).keep(tensor(100, 100)).float().mean()) < 0.4


def test_ties_go_to_the_lower_index() -> None:
    assert NOfM(1, 4).keep(torch.zeros(8)).nonzero().flatten().tolist() == [0, 4]
    assert GlobalFraction(0.25).keep(torch.ones(8)).nonzero().flatten().tolist() == [0, 1]


def test_a_last_dimension_that_blocks_do_not_fit_is_named() -> None:
    with pytest.raises(PatternError, match=r"multiple of 4, got a tensor of shape \(2, 6\)"):
        NOfM(2, 4).keep(tensor(2, 6))


@pytest.mark.parametrize("least", ["a", None, True, -1, float("nan")])
def test_a_threshold_that_is_no_magnitude_is_refused(least: Any) -> None:
    with pytest.raises(PatternError, match=rf"^A threshold is a magnitude, a number of 0 or more, got {least!r}\.$"):
        Threshold(least)


@pytest.mark.parametrize("wrong", ["a", None, True, float("nan"), 2])
def test_a_density_that_is_none_is_refused(wrong: Any) -> None:
    for make in (RandomFraction, GlobalFraction, lambda density: BlockFraction(density, 4)):
        with pytest.raises(PatternError, match=rf"^A density is a number above 0 and at most 1, got {wrong!r}\.$"):
            make(wrong)


@pytest.mark.parametrize(
    "wrong",
    [lambda: NOfM(5, 4), lambda: NOfM("a", 4), lambda: NOfM(1.5, 4), lambda: GlobalFraction(0.0)]
    + [lambda: BlockFraction(0.5, 0), lambda: BlockFraction(0.5, "a"), lambda: BlockFraction(0.5, 1.5)],
)
def test_impossible_numbers_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PatternError):
        wrong()


def test_an_inline_materializing_sparsifier_is_refused_and_told_where_it_belongs() -> None:
    with pytest.raises(PatternError, match=r"materializing: it needs the whole tensor.*external"):
        SparseFormat(inline=GlobalFraction(0.1))
    assert SparseFormat(external=GlobalFraction(0.1)).external == GlobalFraction(0.1)


def test_a_sparsifier_of_ones_own_is_materializing_until_it_says_otherwise() -> None:
    class Largest(AbstractTensorSparsifier):
        def keep(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor == tensor.max()

    with pytest.raises(PatternError, match="materializing"):
        SparseFormat(inline=Largest())


def test_an_unknown_layout_is_refused_with_the_nearest() -> None:
    with pytest.raises(RegistryError, match="Did you mean 'vector'"):
        SparseFormat(final="vectro")


def test_a_pattern_text_means_the_largest_magnitudes_and_goes_where_its_kind_may() -> None:
    assert format_of("2:4") == SparseFormat(inline=NOfM(2, 4))
    assert format_of("10%") == SparseFormat(external=GlobalFraction(0.1))
    assert format_of("dense") == SparseFormat()
    assert format_of("4x1@50%").external.kind is Kind.MATERIALIZING


def test_the_four_parts_act_in_their_order() -> None:
    x = tensor(4, 16).requires_grad_()
    form = SparseFormat(inline=NOfM(2, 4), temporary="bitmask", external=GlobalFraction(0.25), final="vector")
    packed = form.apply(x)
    assert isinstance(packed, SparseTensor)
    assert packed.packed.layout == "vector"
    expected = GlobalFraction(0.25)(NOfM(2, 4)(x.detach()))
    assert torch.equal(packed.dense(), expected)
    assert packed.requires_grad
    coo = SparseFormat(inline=NOfM(2, 4), temporary="coo", external=GlobalFraction(0.25), final="coo").apply(x)
    assert coo.layout == torch.sparse_coo
    assert torch.equal(coo.to_dense(), expected)
    coo.to_dense().sum().backward()
    assert torch.equal(x.grad, (expected != 0).float())
