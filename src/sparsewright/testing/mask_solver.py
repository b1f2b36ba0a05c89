"""The laws of mask solvers."""

import pytest
import torch

from ..core import NM, AbstractPattern, Block, NumericError, PatternError, Unstructured, parse_pattern
from ..solvers import AbstractMaskSolver
from .examples import (
    PATTERN_TEXTS,
    fitting_shapes,
    kept_exactly,
    masks_of,
    row_unit,
    sample_scores,
    small_shapes,
)


class MaskSolverContract:
    """Subclass it and define the fixture `solver`."""

    def _able(self, solver: AbstractMaskSolver) -> list[AbstractPattern]:
        return [parse_pattern(text) for text in PATTERN_TEXTS if not solver.why_not(parse_pattern(text))]

    def test_it_solves_some_pattern_and_gives_reasons_for_the_others(self, solver: AbstractMaskSolver) -> None:
        assert self._able(solver)
        for text in PATTERN_TEXTS:
            assert all(isinstance(reason, str) and reason for reason in solver.why_not(parse_pattern(text)))

    def test_masks_obey_the_pattern_and_keep_exactly_its_count(self, solver: AbstractMaskSolver) -> None:
        for pattern in self._able(solver):
            for shape in fitting_shapes(pattern):
                mask = solver.solve(sample_scores(shape), pattern)
                assert tuple(mask.shape) == shape
                assert mask.dtype == torch.bool
                assert pattern.check_mask(mask) == [], f"{pattern} {shape}"
                if solver.exact:
                    assert int(mask.sum()) == kept_exactly(pattern, shape), f"{pattern} {shape}"
                else:
                    # What is near the best may leave places empty.
                    assert 0 < int(mask.sum()) <= kept_exactly(pattern, shape), f"{pattern} {shape}"

    def test_the_kept_score_is_the_best_of_all_masks_or_at_least_half_of_it(self, solver: AbstractMaskSolver) -> None:
        for pattern in self._able(solver):
            for shape in small_shapes(pattern):
                every = masks_of(str(pattern), shape).double()
                for seed in range(20):
                    # Signed, because exactly n means n even where scores are negative.
                    scores = sample_scores(shape, seed).double() - 0.7 * (seed % 2)
                    best = float((every @ scores.reshape(-1)).max())
                    kept = float(scores[solver.solve(scores, pattern)].sum())
                    if solver.exact:
                        assert kept == pytest.approx(best, abs=1e-9), f"{pattern} {shape} seed {seed}"
                    elif seed % 2 == 0:
                        assert best / 2 <= kept <= best + 1e-9, f"{pattern} {shape} seed {seed}"

    def test_ties_go_to_the_lower_index(self, solver: AbstractMaskSolver) -> None:
        for pattern in self._able(solver):
            shape = next(iter(fitting_shapes(pattern)))
            mask = solver.solve(torch.zeros(shape), pattern)
            out, in_ = shape
            if isinstance(pattern, NM):
                expected = (torch.arange(in_) % pattern.m < pattern.n).expand(shape)
            elif isinstance(pattern, Unstructured):
                expected = (torch.arange(out * in_) < pattern.kept_weights(shape)).view(shape)
            elif isinstance(pattern, Block):
                expected = (torch.arange(in_) < pattern.kept_blocks(in_) * pattern.columns).expand(shape)
            else:
                # Transposable ties follow one fixed rule of the solver: then it is at least the same twice.
                expected = solver.solve(torch.zeros(shape), pattern)
            assert torch.equal(mask, expected), f"{pattern} {shape}"

    def test_the_mask_does_not_depend_on_the_number_of_threads(self, solver: AbstractMaskSolver) -> None:
        before = torch.get_num_threads()
        try:
            for pattern in self._able(solver):
                # Whole numbers, so that there are many ties.
                scores = (8 * sample_scores((96, 1536))).round()
                masks = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    masks.append(solver.solve(scores, pattern))
                assert torch.equal(masks[0], masks[1]), str(pattern)
                assert torch.equal(masks[0], masks[2]), str(pattern)
        finally:
            torch.set_num_threads(before)

    def test_the_mask_of_some_rows_does_not_depend_on_the_other_rows(self, solver: AbstractMaskSolver) -> None:
        for pattern in self._able(solver):
            unit = row_unit(pattern)
            shape = (48, 96)
            if unit is None or not pattern.fits((unit, 96)) or not pattern.fits(shape):
                continue
            scores = (8 * sample_scores(shape)).round()
            whole = solver.solve(scores, pattern)
            parts = [solver.solve(rows, pattern) for rows in scores.split(unit)]
            assert torch.equal(whole, torch.cat(parts)), str(pattern)

    def test_at_most_drops_what_has_no_positive_score(self, solver: AbstractMaskSolver) -> None:
        for pattern in self._able(solver):
            shape = next(iter(fitting_shapes(pattern)))
            scores = sample_scores(shape)
            assert not solver.solve(-scores, pattern, "at_most").any(), str(pattern)
            assert not solver.solve(torch.zeros(shape), pattern, "at_most").any(), str(pattern)
            mask = solver.solve(scores - 0.6, pattern, "at_most")
            assert pattern.check_mask(mask) == [], str(pattern)
            exact = solver.solve(scores - 0.6, pattern)
            assert float((scores - 0.6)[mask].sum()) >= float((scores - 0.6)[exact].sum()) - 1e-3, str(pattern)

    def test_half_precision_scores_give_the_mask_of_their_exact_image(self, solver: AbstractMaskSolver) -> None:
        for pattern in self._able(solver):
            shape = next(iter(fitting_shapes(pattern)))
            for dtype in (torch.float16, torch.bfloat16):
                scores = sample_scores(shape).to(dtype)
                expected = solver.solve(scores.double(), pattern)
                assert torch.equal(solver.solve(scores, pattern), expected), f"{pattern} {dtype}"

    def test_scores_that_are_not_contiguous_or_need_gradients_are_taken_and_left_alone(
        self, solver: AbstractMaskSolver
    ) -> None:
        for pattern in self._able(solver):
            shape = next(iter(fitting_shapes(pattern)))
            scores = sample_scores(shape)
            other_way = scores.T.contiguous().T.requires_grad_()
            mask = solver.solve(other_way, pattern)
            assert torch.equal(mask, solver.solve(scores, pattern)), str(pattern)
            assert torch.equal(other_way.detach(), scores)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_scores_that_are_not_finite_are_refused_with_their_position(
        self, solver: AbstractMaskSolver, bad: float
    ) -> None:
        pattern = self._able(solver)[0]
        shape = next(iter(fitting_shapes(pattern)))
        scores = sample_scores(shape)
        scores[0, 5] = bad
        with pytest.raises(NumericError, match=r"\[0, 5\]"):
            solver.solve(scores, pattern)

    def test_what_does_not_fit_is_refused_with_the_reason(self, solver: AbstractMaskSolver) -> None:
        for text in PATTERN_TEXTS:
            pattern = parse_pattern(text)
            if solver.why_not(pattern):
                with pytest.raises(PatternError):
                    solver.solve(sample_scores((48, 96)), pattern)
            elif not pattern.fits((7, 13)):
                with pytest.raises(PatternError, match="multiple"):
                    solver.solve(sample_scores((7, 13)), pattern)

    def test_scores_of_another_form_are_refused(self, solver: AbstractMaskSolver) -> None:
        pattern = self._able(solver)[0]
        with pytest.raises(PatternError, match="matrix"):
            solver.solve(torch.ones(96), pattern)
        with pytest.raises(PatternError, match="matrix"):
            solver.solve(torch.ones(48, 96, dtype=torch.int64), pattern)
