"""Interleaved timing: candidates take turns, so that a change of clock or a noisy neighbour hits all of them alike.

With one thread the clock is the thread's own CPU time, which does not count while others hold the core; with more
threads only wall time sees all the work, and the samples say so. Only ratios inside one interleaved run are comparable.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from ..core import ProfileError, is_number, is_whole

Call = Callable[[], object]

# Below this a sample is dominated by reading the clock; calls are repeated inside a sample until it is reached.
_SHORTEST_SAMPLE_S = 2e-4


@final
@dataclass(frozen=True)
class Samples:
    """What one candidate took.

    Attributes:
        cpu: `(rounds,)` float64, seconds of the calling thread's CPU time per call.
        wall: `(rounds,)` float64, seconds of wall time per call.
        threads: torch's intra-op threads while timing.
    """

    cpu: NDArray[np.float64]
    wall: NDArray[np.float64]
    threads: int

    @property
    def clock(self) -> str:
        """Which clock `seconds` reads."""
        return "thread CPU time" if self.threads == 1 else "wall time"

    @property
    def seconds(self) -> NDArray[np.float64]:
        """`(rounds,)` samples of the clock that is right for the thread count."""
        return self.cpu if self.threads == 1 else self.wall

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return float(np.median(self.seconds))

    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds per call."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    def latency(self, percent: float) -> float:
        """Wall seconds that `percent` of the calls did not exceed (50, 95, 99)."""
        return float(np.percentile(self.wall, percent))


@final
@dataclass(frozen=True)
class Ratio:
    """How many times faster one candidate is than another, paired round by round.

    Attributes:
        value: median of `seconds of the other / seconds of this`; above 1 means faster.
        low, high: bootstrap 95 % interval of that median.
    """

    value: float
    low: float
    high: float


def speedup(candidate: Samples, reference: Samples, draws: int = 1000) -> Ratio:
    """`reference` time divided by `candidate` time, from rounds timed side by side.

    Raises:
        ProfileError: the two come from runs of different length, so rounds cannot be paired.
    """
    if len(candidate.cpu) != len(reference.cpu):
        raise ProfileError(
            f"A ratio pairs rounds of one interleaved run, got {len(candidate.cpu)} and {len(reference.cpu)} rounds. "
            "Time both candidates in the same run."
        )
    paired = reference.seconds / candidate.seconds
    generator = np.random.default_rng(0)
    medians = np.median(paired[generator.integers(0, len(paired), (draws, len(paired)))], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Ratio(float(np.median(paired)), float(low), float(high))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run the block with `count` intra-op threads; the earlier number is restored."""
    if not is_whole(count, 1):
        raise ProfileError(f"Timing needs at least one thread, got {count!r}.")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_timing(threads: int, rounds: tuple[int, int], seconds: float) -> None:
    """Raise ProfileError unless these are numbers to time by; see `interleave`."""
    if not is_whole(threads, 1):
        raise ProfileError(f"Timing needs at least one thread, got {threads!r}.")
    if not isinstance(rounds, tuple | list) or len(rounds) != 2 or not all(is_whole(count, 1) for count in rounds):
        raise ProfileError(f"Rounds are the least and the most samples, two whole numbers from 1, got {rounds!r}.")
    if rounds[1] < rounds[0]:
        raise ProfileError(f"Rounds are the least and the most samples, so the second is no smaller, got {rounds!r}.")
    if not is_number(seconds) or seconds < 0:
        raise ProfileError(f"Timing takes a number of seconds, 0 (the least rounds) or more, got {seconds!r}.")


def interleave(
    candidates: Mapping[str, Call],
    *,
    threads: int = 1,
    rounds: tuple[int, int] = (5, 25),
    seconds: float = 2.0,
    tolerance: float = 0.02,
    warm: int = 0,
) -> dict[str, Samples]:
    """Time candidates round-robin until their medians are steady, or time or rounds are used up.

    Args:
        candidates: name -> call without arguments.
        threads: torch's intra-op threads during the run.
        rounds: at least and at most that many rounds; each round times every candidate once.
        seconds: wall time after which no further round starts (once the least number is done).
        tolerance: steady means that half the interquartile range is at most this share of the median, for every
            candidate, divided by the square root of the number of rounds.
        warm: untimed calls before each sample. Whole models want one: in service a model follows itself and finds its
            weights in cache as far as they fit, while here another candidate has just pushed them out.

    Returns:
        name -> samples, all of the same length, rounds in the same order.

    Raises:
        ProfileError: no candidates, or threads, rounds or seconds that are none.
    """
    check_timing(threads, rounds, seconds)
    if not candidates:
        raise ProfileError("Timing needs candidates, got none. Pass at least one.")
    least, most = rounds
    names = list(candidates)
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    with torch_threads(threads), torch.inference_mode():
        inner = {name: _calls_per_sample(candidates[name]) for name in names}
        stop = time.perf_counter() + seconds
        for done in range(most):
            if done >= least and (time.perf_counter() > stop or _steady(cpu if threads == 1 else wall, tolerance)):
                break
            # The order turns by one each round, so that nobody always runs after the same neighbour.
            for name in names[done % len(names) :] + names[: done % len(names)]:
                for _ in range(warm):
                    candidates[name]()
                cpu_s, wall_s = _sample(candidates[name], inner[name])
                cpu[name].append(cpu_s)
                wall[name].append(wall_s)
    return {name: Samples(np.array(cpu[name]), np.array(wall[name]), threads) for name in names}


def _calls_per_sample(call: Call) -> int:
    """Warm up twice; the second run tells how many calls make a sample."""
    call()
    return max(1, int(_SHORTEST_SAMPLE_S / max(1e-9, _sample(call, 1)[1])))


def _sample(call: Call, inner: int) -> tuple[float, float]:
    wall = time.perf_counter()
    cpu = time.thread_time()
    for _ in range(inner):
        call()
    cpu = time.thread_time() - cpu
    wall = time.perf_counter() - wall
    # A clock with coarse steps may show nothing at all; a ratio must stay finite.
    return max(cpu, 1e-9) / inner, max(wall, 1e-9) / inner


def _steady(samples: Mapping[str, list[float]], tolerance: float) -> bool:
    for values in samples.values():
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        if (high - low) / 2 > tolerance * middle * np.sqrt(len(values)):
            return False
    return True
