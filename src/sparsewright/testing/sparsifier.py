"""The laws of sparsifiers."""

from dataclasses import replace

import pytest
import torch

from ..core import AbstractPattern, DataError, NumericError, PatternError, parse_pattern
from ..layouts import pack
from ..solvers import solve_mask
from ..sparsifiers import AbstractSparsifier, reconstruction_error
from .examples import PATTERN_TEXTS, SHAPES, Shape, kept_exactly, sample_scores, sample_stats, sample_weight


def solvable_patterns(shape: Shape) -> list[AbstractPattern]:
    """The example patterns that fit the shape and have a solver."""
    able = []
    for text in PATTERN_TEXTS:
        pattern = parse_pattern(text)
        try:
            solve_mask(sample_scores(shape), pattern)
        except PatternError:
            continue
        able.append(pattern)
    return able


class SparsifierContract:
    """Subclass it and define the fixture `sparsifier`."""

    @pytest.mark.parametrize("shape", SHAPES)
    def test_masks_obey_the_pattern_and_weights_are_zero_outside(
        self, sparsifier: AbstractSparsifier, shape: Shape
    ) -> None:
        weight, stats = sample_weight(shape), sample_stats(shape[1])
        for pattern in solvable_patterns(shape):
            result = sparsifier.sparsify(weight, stats, pattern)
            assert result.mask.dtype == torch.bool
            assert result.mask.shape == result.weight.shape == weight.shape
            assert pattern.check_mask(result.mask) == [], str(pattern)
            assert int(result.mask.sum()) == kept_exactly(pattern, shape), str(pattern)
            assert bool((result.weight[~result.mask] == 0).all()), str(pattern)
            assert bool(torch.isfinite(result.weight).all()), str(pattern)
            assert result.weight.dtype == weight.dtype

    @pytest.mark.parametrize("pattern", ["2:4", "2:4t"])
    def test_what_the_end_cuts_off_keeps_at_most_as_much_or_stays_dense(
        self, sparsifier: AbstractSparsifier, pattern: str
    ) -> None:
        rule = parse_pattern(pattern)
        weight, stats = sample_weight((10, 23)), sample_stats(23)
        at_most = sparsifier.sparsify(weight, stats, pattern, edge="at_most")
        assert rule.check_mask(at_most.mask) == []
        assert bool((at_most.weight[~at_most.mask] == 0).all())
        dense = sparsifier.sparsify(weight, stats, pattern, edge="dense")
        assert rule.with_edge("dense").check_mask(dense.mask) == []
        assert bool(dense.mask[:, 20:].all())

    @pytest.mark.parametrize("pattern", ["2:4", "50%"])
    def test_weights_of_int8_come_through_packing_to_the_last_bit(
        self, sparsifier: AbstractSparsifier, pattern: str
    ) -> None:
        found = sparsifier.sparsify(sample_weight((24, 32)), sample_stats(32), pattern, value_dtype="int8")
        packed = pack(found.weight, found.mask, "int8_weights", pattern, torch.int8)
        assert torch.equal(packed.unpack(), found.weight)

    def test_the_weight_that_came_is_not_changed(self, sparsifier: AbstractSparsifier) -> None:
        weight = sample_weight((48, 96)).requires_grad_()
        before = weight.detach().clone()
        for pattern in solvable_patterns((48, 96)):
            result = sparsifier.sparsify(weight, sample_stats(96), pattern)
            result.weight.zero_()
            assert not result.weight.requires_grad
            assert torch.equal(weight, before), str(pattern)

    def test_reruns_are_bit_equal(self, sparsifier: AbstractSparsifier) -> None:
        weight, stats = sample_weight((48, 160)), sample_stats(160)
        for pattern in solvable_patterns((48, 160)):
            first, second = (sparsifier.sparsify(weight, stats, pattern) for _ in range(2))
            assert torch.equal(first.mask, second.mask), str(pattern)
            assert torch.equal(first.weight, second.weight), str(pattern)

    def test_it_loses_less_of_the_output_than_a_random_choice(self, sparsifier: AbstractSparsifier) -> None:
        shape = (48, 96)
        weight, stats = sample_weight(shape), sample_stats(96)
        for pattern in solvable_patterns(shape):
            result = sparsifier.sparsify(weight, stats, pattern)
            random = torch.where(solve_mask(sample_scores(shape, seed=5), pattern), weight, 0)
            ours = reconstruction_error(weight, result.weight, stats)
            assert ours < reconstruction_error(weight, random, stats), str(pattern)

    @pytest.mark.parametrize("dead", [1, 24, 96])
    def test_inputs_that_never_fire_do_no_harm(self, sparsifier: AbstractSparsifier, dead: int) -> None:
        weight, stats = sample_weight((32, 96)), sample_stats(96, dead=dead)
        for pattern in solvable_patterns((32, 96)):
            result = sparsifier.sparsify(weight, stats, pattern)
            assert bool(torch.isfinite(result.weight).all()), str(pattern)
            assert int(result.mask.sum()) == kept_exactly(pattern, (32, 96)), str(pattern)

    def test_fewer_tokens_than_inputs_are_enough(self, sparsifier: AbstractSparsifier) -> None:
        weight, stats = sample_weight((32, 96)), sample_stats(96, tokens=3)
        for pattern in solvable_patterns((32, 96)):
            result = sparsifier.sparsify(weight, stats, pattern)
            assert bool(torch.isfinite(result.weight).all()), str(pattern)
            assert pattern.check_mask(result.mask) == [], str(pattern)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_the_dtype_of_the_weight_is_kept(self, sparsifier: AbstractSparsifier, dtype: torch.dtype) -> None:
        weight = sample_weight((32, 96), dtype=dtype)
        for pattern in solvable_patterns((32, 96)):
            result = sparsifier.sparsify(weight, sample_stats(96), pattern)
            assert result.weight.dtype == dtype
            assert bool(torch.isfinite(result.weight).all()), str(pattern)

    def test_the_dense_pattern_gives_the_weight_back(self, sparsifier: AbstractSparsifier) -> None:
        weight = sample_weight((8, 16))
        result = sparsifier.sparsify(weight, sample_stats(16), "dense")
        assert bool(result.mask.all())
        assert torch.equal(result.weight, weight)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_refused_by_layer_and_position(
        self, sparsifier: AbstractSparsifier, bad: float
    ) -> None:
        weight = sample_weight((8, 16))
        weight[3, 7] = bad
        with pytest.raises(NumericError, match=r"encoder\.fc1.*\[3, 7\]"):
            sparsifier.sparsify(weight, sample_stats(16), "2:4", layer="encoder.fc1")

    def test_missing_stats_are_refused_by_layer(self, sparsifier: AbstractSparsifier) -> None:
        weight = sample_weight((8, 16))
        if sparsifier.needs == "none":
            assert int(sparsifier.sparsify(weight, None, "2:4").mask.sum()) == 64
            return
        with pytest.raises(DataError, match=r"encoder\.fc1"):
            sparsifier.sparsify(weight, None, "2:4", layer="encoder.fc1")
        with pytest.raises(DataError, match=r"encoder\.fc1"):
            sparsifier.sparsify(weight, sample_stats(32), "2:4", layer="encoder.fc1")
        if sparsifier.needs == "gram":
            with pytest.raises(DataError, match=r"encoder\.fc1"):
                sparsifier.sparsify(weight, replace(sample_stats(16), gram=None), "2:4", layer="encoder.fc1")

    def test_a_gram_matrix_with_nan_is_refused_by_layer(self, sparsifier: AbstractSparsifier) -> None:
        stats = sample_stats(16)
        if sparsifier.needs != "gram" or stats.gram is None:
            return
        gram = stats.gram.clone()
        gram[2, 3] = float("nan")
        with pytest.raises(NumericError, match=r"encoder\.fc1.*\[2, 3\]"):
            sparsifier.sparsify(sample_weight((8, 16)), replace(stats, gram=gram), "2:4", layer="encoder.fc1")

    def test_what_does_not_fit_is_refused_by_layer(self, sparsifier: AbstractSparsifier) -> None:
        with pytest.raises(PatternError, match=r"encoder\.fc1"):
            sparsifier.sparsify(sample_weight((8, 18)), sample_stats(18), "2:4", layer="encoder.fc1")
        with pytest.raises(PatternError, match=r"encoder\.fc1"):
            sparsifier.sparsify(torch.ones(8), sample_stats(8), "2:4", layer="encoder.fc1")
