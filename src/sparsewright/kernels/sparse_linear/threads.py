"""From which size on a call is shared between torch's threads."""

from dataclasses import dataclass
from typing import final

import torch

from ..._native import forget_plans


@final
@dataclass(frozen=True)
class Sharing:
    """What sharing a call costs and what it shares; measured by `hardware.calibrate`, a default ships.

    Attributes:
        serial_s: seconds of work on one thread from which on sharing pays.
        multiply_adds_per_s: float multiply-adds that one thread does in a second.
        read_bytes_per_s: bytes of weights that one thread reads in a second.
    """

    serial_s: float = 150e-6  # forking and joining: 2 us awake, 10 us asleep, each way
    multiply_adds_per_s: float = 30e9
    read_bytes_per_s: float = 20e9


_sharing = Sharing()


def set_sharing(measured: Sharing | None) -> None:
    """Share calls as measured on this machine; None goes back to the default."""
    global _sharing
    _sharing = Sharing() if measured is None else measured
    forget_plans()


def sharing() -> Sharing:
    """What is in use."""
    return _sharing


def worth_sharing(multiply_adds: float, weight_bytes: float) -> bool:
    """Whether threads pay for a call of so many float multiply-adds (or their equal) over so many bytes of weights."""
    of = _sharing
    return multiply_adds / of.multiply_adds_per_s + weight_bytes / of.read_bytes_per_s > of.serial_s


def threads_for(multiply_adds: float, weight_bytes: float) -> int:
    """Threads of a call of this size: all of torch's, or one."""
    return torch.get_num_threads() if worth_sharing(multiply_adds, weight_bytes) else 1
