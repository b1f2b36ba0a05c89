"""`lr="auto"`: a few learning rates, each tried for a few steps from the same start, the best one kept."""

import math
from collections.abc import Callable

from ..core import NumericError

RATES = (1e-4, 3e-4, 1e-3)
# Steps of one trial: a share of the run, at most so many.
_SHARE = 20
_MOST_STEPS = 20

Trial = Callable[[float, int], float]
"""Rate and steps -> loss on batches that the trial does not train on; leaves everything as it was."""


def choose_rate(trial: Trial, total: int) -> float:
    """The rate of least loss after its trial, the smaller one of two alike. All trials take three twentieths of a run.

    Args:
        trial: runs one; a NumericError means that the rate is too high.
        total: steps of the run.

    Raises:
        NumericError: no rate gives a finite loss.
    """
    steps = max(1, min(_MOST_STEPS, total // _SHARE))
    best, least, fault = RATES[0], math.inf, None
    for rate in RATES:
        try:
            loss = trial(rate, steps)
        except NumericError as error:
            fault = error
            continue
        if loss < least:
            best, least = rate, loss
    if not math.isfinite(least):
        raise NumericError(f"No learning rate of {RATES} gives a finite loss: {fault}") from fault
    return best
