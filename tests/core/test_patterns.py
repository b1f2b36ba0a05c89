"""Pattern texts, counts, containment: everything about patterns that can be tried on small masks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsewright.core import (
    NM,
    NMG,
    AbstractPattern,
    Block,
    Dense,
    PatternError,
    Transposable,
    Unstructured,
    from_prune_n,
    parse_pattern,
)
from sparsewright.testing import PATTERN_TEXTS, kept_exactly

densities = st.integers(1, 999_999).map(lambda part: part / 1_000_000)
n_of_m = st.integers(1, 64).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))
patterns = st.one_of(
    st.just(Dense()),
    st.builds(lambda nm, g: NM(*nm, g), n_of_m, st.integers(1, 64)),
    st.builds(lambda nm: Transposable(*nm), n_of_m),
    st.builds(lambda m, n, g: NMG(min(n, m), m, g), st.integers(1, 8), st.integers(1, 8), st.integers(1, 64)),
    st.builds(Unstructured, densities),
    st.builds(Block, st.integers(1, 64), st.integers(1, 256), densities),
)


@given(patterns)
def test_printing_and_parsing_gives_the_same_pattern(pattern: AbstractPattern) -> None:
    again = parse_pattern(str(pattern))
    assert again == pattern
    assert str(again) == str(pattern)
    assert hash(again) == hash(pattern)


@given(patterns)
def test_densities_and_index_bits_are_in_range(pattern: AbstractPattern) -> None:
    assert 0 < pattern.density <= 1
    assert 0 <= pattern.index_bits(1024) <= 8
    assert pattern.theoretical_bytes((64, 1024), 32) >= 64 * 1024 * 4 * pattern.density


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("2:4x1", "2:4"),
        ("50 %", "50%"),
        (" 2 : 4 x 16 ", "2:4x16"),
        ("DENSE", "dense"),
        ("12.50%", "12.5%"),
        ("4X1@50.0%", "4x1@50%"),
        ("2:4T", "2:4t"),
    ],
)
def test_texts_have_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_pattern(text)) == canonical


@pytest.mark.parametrize(
    "text", ["", "4:2", "0:4", "2:512", "2:4x0", "2:4x65", "0%", "100%", "150%", "2;4", "4x1@0%", "0x1@50%", "3:6:0"]
)
def test_texts_that_are_no_patterns_are_refused(text: str) -> None:
    with pytest.raises(PatternError):
        parse_pattern(text)


@pytest.mark.parametrize("value", [124, 0.5, None, ["2:4"]])
def test_numbers_from_unquoted_yaml_are_refused_with_the_remedy(value: object) -> None:
    with pytest.raises(PatternError, match="quotes"):
        parse_pattern(value)  # type: ignore[arg-type]


def test_a_pattern_passes_through_the_parser() -> None:
    assert parse_pattern(NM(2, 4)) is not None
    assert parse_pattern(NM(2, 4)) == parse_pattern("2:4")


@pytest.mark.parametrize(
    ("text", "bits"),
    [("dense", 0), ("2:4", 1.0), ("2:4x4", 0.25), ("1:4", 0.5), ("4:8", 1.5), ("50%", 1.0), ("10%", 0.8)]
    + [("4x1@50%", 0.25), ("4x1@10%", 0.2), ("16x1@25%", 1 / 16), ("2:4t", 1.0)],
)
def test_index_bits_are_those_of_the_design(text: str, bits: float) -> None:
    assert parse_pattern(text).index_bits(768) == pytest.approx(bits)


def _all_masks(shape: tuple[int, int]) -> torch.Tensor:
    weights = math.prod(shape)
    bits = (torch.arange(2**weights)[:, None] >> torch.arange(weights)) & 1
    return bits.to(torch.bool).view(-1, *shape)


@pytest.mark.parametrize("shape", [(2, 4), (1, 8), (4, 2), (8, 1)])
def test_containment_agrees_with_trying_every_mask(shape: tuple[int, int]) -> None:
    texts = ["dense", "1:2", "2:2", "1:4", "2:4", "3:4", "4:8", "2:8", "1:2x2", "2:4x2", "1:4x2", "2:4x4", "1:2t"]
    texts += ["2:4t", "50%", "25%", "2x1@50%", "1x2@50%", "2x2@50%", "1x1@50%", "4x1@50%", "1:2:1", "1:2:2", "2:4:1"]
    # Where counts come out whole: containment speaks of densities, before they are rounded to counts.
    fitting = [pattern for pattern in map(parse_pattern, texts) if pattern.fits(shape)]
    fitting = [pattern for pattern in fitting if kept_exactly(pattern, shape) == pattern.density * math.prod(shape)]
    assert len(fitting) > 2
    masks = _all_masks(shape)
    lawful = {pattern: {i for i, mask in enumerate(masks) if not pattern.check_mask(mask)} for pattern in fitting}
    for inner, outer in itertools.product(fitting, repeat=2):
        if inner <= outer:
            assert lawful[inner] <= lawful[outer], f"{inner} <= {outer} at {shape}"


@pytest.mark.parametrize(
    ("inner", "outer"),
    [("1:4", "2:4"), ("2:4", "4:8"), ("2:4", "50%"), ("2:4x16", "2:4x4"), ("2:4x4", "2:4"), ("2:4t", "2:4")]
    + [("10%", "50%"), ("4x1@25%", "4x1@50%"), ("2:4x4", "4x1@50%"), ("2:4", "dense"), ("1:4x4", "2:8")],
)
def test_useful_containments_are_known(inner: str, outer: str) -> None:
    assert parse_pattern(inner) < parse_pattern(outer)
    assert not parse_pattern(outer) <= parse_pattern(inner)


@given(patterns, patterns)
def test_containment_is_an_order(first: AbstractPattern, second: AbstractPattern) -> None:
    assert first <= first
    if first <= second and second <= first:
        assert first == second or first.density == second.density
    if first <= second:
        assert first.density <= second.density + 1e-12


@settings(max_examples=60)
@given(patterns, st.integers(1, 40), st.integers(1, 40))
def test_every_misfit_says_why(pattern: AbstractPattern, out: int, in_: int) -> None:
    reasons = pattern.why_not((out, in_))
    assert pattern.fits((out, in_)) == (not reasons)
    if reasons:
        with pytest.raises(PatternError, match=r"encoder\.fc1"):
            pattern.require_fit((out, in_), "encoder.fc1")
    else:
        assert pattern.check_mask(torch.zeros(out, in_, dtype=torch.bool)) == []


@pytest.mark.parametrize("text", PATTERN_TEXTS)
def test_a_full_mask_breaks_every_sparse_pattern(text: str) -> None:
    pattern = parse_pattern(text)
    assert pattern.check_mask(torch.ones(96, 96, dtype=torch.bool))
    assert kept_exactly(pattern, (96, 96)) == pytest.approx(pattern.density * 96 * 96, abs=96)


def test_a_shared_choice_binds_all_rows_of_a_group_and_the_short_last_one() -> None:
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = True
    assert NM(2, 4).check_mask(mask) == []
    assert NM(2, 4, 2).check_mask(mask) == []
    assert "row 0" in NM(2, 4, 4).check_mask(mask)[0]
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[4, :2] = mask[5, 1:3] = True
    assert "row 4" in NM(2, 4, 4).check_mask(mask)[0]


@pytest.mark.parametrize(("removed", "of", "text"), [(2, 4, "2:4"), (1, 4, "3:4"), (3, 4, "1:4"), (5, 8, "3:8")])
def test_removed_weights_are_counted_the_other_way_round(removed: int, of: int, text: str) -> None:
    assert str(from_prune_n(removed, of)) == text


@pytest.mark.parametrize("pair", [(0, 0), (0, 4), (4, 4), (5, 4), (-1, 4), (1.5, 4), (True, 4), ("2", 4)])
def test_counts_of_removed_weights_that_make_no_pattern_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(PatternError, match="prune_n"):
        from_prune_n(*pair)


def test_how_edges_are_treated_is_no_part_of_a_patterns_text_and_equality() -> None:
    pattern = parse_pattern("8:16t")
    edged = pattern.with_edge("at_most")
    assert edged == pattern
    assert str(edged) == str(pattern)
    assert edged.fits((20, 20))
    assert not pattern.fits((20, 20))
    with pytest.raises(PatternError, match="edge is"):
        pattern.with_edge("round")  # type: ignore[arg-type]


def test_a_mask_shows_how_its_edges_were_treated() -> None:
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[:, 8] = True
    found = NM(1, 4).obeyed_by(mask)
    assert found is not None
    assert found.edge == "at_most"
    mask[:, 9] = True
    found = NM(1, 4).obeyed_by(mask)
    assert found is not None
    assert found.edge == "dense"
    mask[0, :2] = True
    assert NM(1, 4).obeyed_by(mask) is None


def test_a_pattern_with_its_value_type_is_told_where_that_goes():
    with pytest.raises(PatternError, match=r"give the pattern '2:4x4', and value_dtype='int8'"):
        parse_pattern("2:4x4 int8")
