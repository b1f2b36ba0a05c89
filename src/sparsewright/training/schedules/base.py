"""What a mask schedule is: when masks change during training, and to what. It knows no model and no optimiser."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor

from ...core import AbstractPattern, Dense, PatternError, RecipeError, Registry, Transposable, is_whole
from ...solvers import MaskSolution, solve_mask


@final
@dataclass(frozen=True)
class Timing:
    """When masks may change, in optimiser steps that counted (steps that a gradient scaler skipped do not).

    Attributes:
        begin: layers are dense before this step.
        every: steps from one change to the next.
        end: the last step at which masks may change; None: as long as the training lasts.
    """

    begin: int
    every: int
    end: int | None

    def due(self, step: int) -> bool:
        """Whether masks may change right after `step` steps: every k steps from `begin` on, and at `end`."""
        if step < max(self.begin, 1) or (self.end is not None and step > self.end):
            return False
        return (step - self.begin) % self.every == 0 or step == self.end

    def share(self, step: int) -> float:
        """How much of the time from `begin` to `end` is over, 0..1; 0 where there is no end."""
        if self.end is None:
            return 0.0
        return min(1.0, max(0.0, (step - self.begin) / max(1, self.end - self.begin)))


@final
class Prices:
    """Prices of the last transposable mask of a layer, from which the search for the next one begins.

    Attributes:
        columns: as `MaskSolution.column_prices`; None before the first solution, and for patterns without prices.
    """

    def __init__(self) -> None:
        self.columns: Tensor | None = None

    def solve(self, scores: Tensor, pattern: AbstractPattern, drop: Tensor | None = None) -> Tensor:
        """The best mask of a pattern; see `solve_mask`. `drop` is for transposable patterns."""
        if not isinstance(pattern, Transposable):
            self.columns = None
            return solve_mask(scores, pattern)
        start = None
        if self.columns is not None and tuple(self.columns.shape) == _price_shape(scores, pattern):
            empty = self.columns[:0]
            start = MaskSolution(empty, math.nan, empty, empty, self.columns)
        found = solve_mask(scores, pattern, certificate=True, start=start, drop=drop)
        self.columns = found.column_prices
        return found.mask


def _price_shape(scores: Tensor, pattern: Transposable) -> tuple[int, int, int]:
    return (scores.shape[0] // pattern.m, scores.shape[1] // pattern.m, pattern.m)


@final
@dataclass(frozen=True, eq=False)
class MaskChange:
    """One layer at a step at which its mask may change.

    Attributes:
        name: of the layer.
        weight: `(out, in)`, whole; dropped weights are zero, or what they are worth by now if the schedule is `live`.
        mask: `(out, in)` bool, True = keep; as it was.
        pattern: what the new mask must obey.
        gradient: `(out, in)` of all weights, kept or not, at the weights before this step; None unless the schedule
            asks for it.
        step: optimiser steps done.
        timing: when masks change.
        random: the same numbers for the same seed, step and layer, on every process.
        prices: where the search for transposable masks begins.
    """

    name: str
    weight: Tensor
    mask: Tensor
    pattern: AbstractPattern
    gradient: Tensor | None
    step: int
    timing: Timing
    random: np.random.Generator
    prices: Prices

    def solve(self, scores: Tensor, drop: Tensor | None = None) -> Tensor:
        """The best mask for these scores, `(out, in)`; transposable ones start from the earlier prices."""
        return self.prices.solve(scores, self.pattern, drop)

    @property
    def obeys(self) -> bool:
        """Whether the mask as it was obeys the pattern already."""
        return not self.pattern.check_mask(self.mask)


class AbstractSchedule(ABC):
    """Says when masks change and to what; one frozen dataclass, whose fields are its settings.

    Laws (checked by `sparsewright.testing.ScheduleContract`): after every step the mask obeys the pattern of that step,
    dropped weights are zero in the model, the last pattern is the one that was asked for, and a resumed training ends
    with the same bits.
    """

    live: ClassVar[bool] = False
    """Dropped weights go on being trained, unseen by the model: each gets the gradient of the place where it would be
    (straight through), so that it can come back with a value of its own."""

    needs_gradient: ClassVar[bool] = False
    """`MaskChange.gradient` is wanted: gradients of dropped weights are kept at steps at which masks may change."""

    starts_dense: ClassVar[bool] = False
    """The first mask keeps everything, whatever the model's own masks are."""

    needs_masks: ClassVar[bool] = False
    """It chooses no masks of its own: every layer must have one of its pattern."""

    usual_every: ClassVar[int] = 100
    """Steps from one change to the next where nothing else is asked for."""

    until: ClassVar[float] = 0.75
    """Share of all steps after which masks stay as they are, where no end is asked for."""

    needs_end: ClassVar[bool] = False
    """It cannot do without an end: `end` or `total` must be given."""

    @property
    def decay(self) -> float:
        """What is added to the gradient of a dropped weight, in units of the weight; for `live` schedules."""
        return 0.0

    def pattern(self, final: AbstractPattern, step: int, timing: Timing) -> AbstractPattern:
        """The pattern after `step` steps: dense before `begin`, the final one from then on."""
        return final if step >= timing.begin else Dense()

    def due(self, step: int, timing: Timing) -> bool:
        """Whether masks may change right after `step` steps."""
        return timing.due(step)

    def first(self, change: MaskChange) -> Tensor:
        """The mask before the first step of a layer that has none that would do: the largest weights."""
        return change.solve(change.weight.abs())

    @abstractmethod
    def choose(self, change: MaskChange) -> Tensor:
        """The new mask, `(out, in)` bool; it must obey `change.pattern`."""

    def checked(self, change: MaskChange) -> Tensor:
        """The new mask of `choose`.

        Raises:
            PatternError: it breaks the pattern.
        """
        mask = self.choose(change)
        reasons = change.pattern.check_mask(mask)
        if reasons:
            raise PatternError(
                f"The schedule {type(self).__name__} chose a mask for {change.name} that is no {change.pattern}: "
                f"{'; '.join(reasons)}. Let `choose` return a mask of change.pattern, for instance change.solve(...)."
            )
        return mask

    def timing(self, begin: int, every: int | None, end: int | None, total: int | None) -> Timing:
        """Fill in what was not asked for.

        Raises:
            RecipeError: numbers out of range, or neither `end` nor `total` where an end is needed.
        """
        step = self.usual_every if every is None else every
        if end is None and total is not None and is_whole(total, 1):
            end = max(begin, round(self.until * total))
        bounds = is_whole(begin, 0) and is_whole(step, 1) and (total is None or is_whole(total, 1))
        if not bounds or not (end is None or (is_whole(end, 0) and end >= begin)):
            raise RecipeError(
                "A mask schedule takes begin of at least 0, every and total of at least 1, and end of at least begin, "
                f"got begin={begin}, every={every}, end={end}, total={total}."
            )
        if end is None and self.needs_end:
            raise RecipeError(
                f"The schedule {type(self).__name__} must know when masks reach their end. Give total= or end=."
            )
        return Timing(begin, step, end)


schedules: Registry[AbstractSchedule] = Registry("schedules", AbstractSchedule)
