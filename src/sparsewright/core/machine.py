"""The instruction set that the native kernels use, or one clear sentence why there is none."""

import functools

from .. import _native
from .errors import MachineError


@functools.cache
def instruction_set() -> str:
    """Name of the best set that runs here, or of the one that SPARSEWRIGHT_ISA forces.

    Raises:
        MachineError: SPARSEWRIGHT_ISA names a set that does not run here.
    """
    try:
        return _native.instruction_set()
    except RuntimeError as error:
        raise MachineError(str(error)) from None


def vector_lanes() -> int:
    """How many floats one vector of that set holds: 16, 8 or 4.

    Raises:
        MachineError: SPARSEWRIGHT_ISA names a set that does not run here.
    """
    name = instruction_set()
    return 16 if name.startswith("avx512") else 8 if name.startswith("avx") else 4
