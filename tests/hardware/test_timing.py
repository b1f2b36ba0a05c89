"""Timing is fair: candidates take turns, in the same number, and the samples say which clock they read."""

import pytest
import torch

from sparsewright.core import ProfileError
from sparsewright.hardware import interleave, speedup, torch_threads


def test_candidates_take_turns_and_nobody_always_goes_first():
    order = []
    interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=(4, 4), seconds=0)
    squeezed = [name for name, before in zip(order, [None, *order]) if name != before]
    assert {"a", "b"} == set(squeezed)
    assert len(squeezed) >= 4


def test_every_candidate_gets_the_same_number_of_samples():
    samples = interleave({"a": lambda: sum(range(10)), "b": lambda: sum(range(1000))}, rounds=(3, 6), seconds=0.01)
    assert len(samples["a"].cpu) == len(samples["b"].cpu) >= 3
    assert (samples["a"].cpu > 0).all()


def test_one_thread_reads_cpu_time_and_more_threads_read_wall_time():
    work = {"a": lambda: torch.ones(64, 64) @ torch.ones(64, 64)}
    assert interleave(work, rounds=(2, 2), seconds=0)["a"].clock == "thread CPU time"
    assert interleave(work, threads=2, rounds=(2, 2), seconds=0)["a"].clock == "wall time"


def test_a_candidate_is_as_fast_as_itself():
    samples = interleave({"a": lambda: sum(range(100))}, rounds=(5, 5), seconds=0)["a"]
    ratio = speedup(samples, samples)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_percentiles_are_in_order():
    samples = interleave({"a": lambda: sum(range(100))}, rounds=(20, 20), seconds=0)["a"]
    assert samples.latency(50) <= samples.latency(95) <= samples.latency(99)


def test_rounds_of_different_runs_are_not_paired():
    one = interleave({"a": lambda: None}, rounds=(2, 2), seconds=0)["a"]
    two = interleave({"a": lambda: None}, rounds=(3, 3), seconds=0)["a"]
    with pytest.raises(ProfileError, match="same run"):
        speedup(one, two)


def test_the_thread_count_is_put_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(1):
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_untimed_calls_come_before_every_sample():
    calls = []
    interleave({"a": lambda: calls.append(1)}, rounds=(2, 2), seconds=0)
    without = len(calls)
    calls.clear()
    interleave({"a": lambda: calls.append(1)}, rounds=(2, 2), seconds=0, warm=3)
    assert len(calls) != without


def test_no_candidates_is_an_error():
    with pytest.raises(ProfileError, match="candidates"):
        interleave({})
