"""Kill -9 at any moment loses at most the work since the last checkpoint; a resumed run gives the same result."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import lasting, start_run


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_as_the_uninterrupted_one(
    small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = small_recipe()
    began = time.monotonic()
    whole = start_run(recipe, tmp_path / "whole")
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    length = time.monotonic() - began
    expected = lasting(tmp_path / "whole")

    moments = random.Random(20261122)
    folder = tmp_path / "killed"
    kills = 0
    while kills < 10:
        process = start_run(recipe, folder)
        started = time.monotonic()
        try:
            # Later processes are shorter, since stages are found again: aim at all of their length.
            process.communicate(timeout=moments.uniform(0.3, 0.9) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            # It got to the end: compare, then begin anew for the remaining kills.
            assert process.returncode == 0
            assert lasting(folder) == expected
            folder = tmp_path / f"killed-{kills}"
            # The first run may have been slowed down by others: then no kill would ever come in time.
            length = min(length, time.monotonic() - started)
    process = start_run(recipe, folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert lasting(folder) == expected
