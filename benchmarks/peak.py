"""The distance to the physical limit: how many multiply-adds one core can do at most, and what share a kernel does.

    python benchmarks/peak.py

The loop keeps its numbers in registers and reads no memory. The best of several short runs counts, because a peak is
what is possible; thread CPU time, float32, the instruction set that the kernels use.
"""

import functools
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from sparsewright._native import fma_peak, instruction_set

_ROUNDS = 12
_ROUND_S = 0.02


@functools.cache
def peak_gflops() -> float:
    """Measured once per process: 1e9 floating-point operations per second of one thread, two per multiply-add."""
    iterations = 1000
    while _seconds(iterations)[0] < _ROUND_S:
        iterations *= 2
    best = 0.0
    for _ in range(_ROUNDS):
        seconds, operations = _seconds(iterations)
        best = max(best, operations / seconds)
    return best / 1e9


def share_of_peak(density: float, out: int, in_: int, tokens: int, seconds: float) -> float:
    """Useful operations of a linear layer (two per kept weight and token) per second / the measured peak."""
    return 2e-9 * density * out * in_ * tokens / seconds / peak_gflops()


def _seconds(iterations: int) -> tuple[float, float]:
    start = time.thread_time()
    operations = fma_peak(iterations)
    return max(time.thread_time() - start, 1e-9), operations


if __name__ == "__main__":
    print(f"{instruction_set()}: {peak_gflops():.1f} GFLOP/s, one thread")
