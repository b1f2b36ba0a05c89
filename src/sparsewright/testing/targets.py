"""Contract of targets: a cost for every choice that they say they can run."""

import math

import pytest

from ..core import Dense, SparsewrightError, parse_pattern
from ..hardware import AbstractTarget

SHAPE = (64, 64)
TOKENS = 8


class TargetContract:
    """Subclass it and define the fixture `target`; every law runs at one small shape, so measured targets are quick."""

    @pytest.fixture
    def target(self) -> AbstractTarget:
        """The target under test."""
        raise pytest.UsageError("A TargetContract needs a fixture `target`.")

    def test_it_says_in_one_line_what_it_is(self, target: AbstractTarget) -> None:
        assert target.about
        assert "\n" not in target.about
        assert target.describe()

    def test_a_dense_layer_has_a_cost(self, target: AbstractTarget) -> None:
        cost = target.dense_cost(SHAPE, TOKENS)
        assert math.isfinite(cost.seconds)
        assert cost.seconds > 0

    @pytest.mark.parametrize("text", ["2:4", "2:4x4", "4x1@50%", "50%"])
    def test_what_it_can_run_has_a_cost_and_what_it_cannot_a_reason(self, target: AbstractTarget, text: str) -> None:
        pattern = parse_pattern(text)
        reasons = target.can_run(pattern, SHAPE)
        if reasons:
            assert all(isinstance(reason, str) and reason for reason in reasons)
            with pytest.raises(SparsewrightError):
                target.layer_cost(SHAPE, pattern, TOKENS)
            return
        assert math.isfinite(target.layer_cost(SHAPE, pattern, TOKENS).seconds)
        assert target.layer_cost(SHAPE, pattern, TOKENS).seconds > 0

    def test_the_same_question_has_the_same_answer(self, target: AbstractTarget) -> None:
        target.prepare([SHAPE], [Dense()], [TOKENS])
        assert target.dense_cost(SHAPE, TOKENS) == target.dense_cost(SHAPE, TOKENS)

    def test_a_pattern_that_does_not_fit_the_shape_is_refused(self, target: AbstractTarget) -> None:
        pattern = parse_pattern("2:4")
        assert target.can_run(pattern, (64, 66))
        with pytest.raises(SparsewrightError):
            target.layer_cost((64, 66), pattern, TOKENS)
