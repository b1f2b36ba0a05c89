"""Windows for a power meter: each candidate runs alone for some seconds, and the wall clock says when.

A meter on the supply line knows nothing of candidates; its log is laid over these windows afterwards, by time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from ..core import ProfileError


@final
@dataclass(frozen=True)
class EnergyWindow:
    """One candidate that had the machine to itself.

    Attributes:
        name: `torch fp32`, `ours`, or a rival's name.
        batch: items of one call.
        start, end: wall clock, UTC seconds since 1970.
        calls: calls that began and ended inside the window.
        items: items answered inside the window, `calls * batch`.
    """

    name: str
    batch: int
    start: float
    end: float
    calls: int
    items: int


def energy_window(name: str, call: Callable[[], object], batch: int, seconds: float) -> EnergyWindow:
    """Call in a row until the time is up; the call under way is finished, so that every window holds whole calls.

    Args:
        name: of the candidate.
        call: one forward pass.
        batch: items of one call.
        seconds: at least so long; above 0.

    Raises:
        ProfileError: no seconds to run, or the wall clock was set back meanwhile.
    """
    if not seconds > 0:
        raise ProfileError(f"A window for a power meter needs seconds above 0, got {seconds}.")
    call()  # what only the first call does stays out of the window
    calls = 0
    start, stop = time.time(), time.perf_counter() + seconds
    while not calls or time.perf_counter() < stop:
        call()
        calls += 1
    end = time.time()
    if end <= start:
        raise ProfileError(f"The machine's clock was set back while {name!r} ran alone. Run the recipe again.")
    return EnergyWindow(name, batch, start, end, calls, calls * batch)
