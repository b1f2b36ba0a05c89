"""Keep freed memory in the process, so that large activations do not fault their pages in anew on every call.

glibc gives the top of its heap back to the system once enough of it is free. A model with activations of some megabytes
then takes tens of thousands of page faults per call, or none, depending on the heap's layout: up to a tenth of an
encoder's time at batch 32 in a virtual machine, the same for dense and sparse layers. A server sets
`MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` in its environment to the same effect.
"""

import ctypes
import sys

# From glibc's malloc.h; a threshold above the largest is refused, so both are set to what is accepted.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_TRIM_THRESHOLD = 1 << 30


def keep_freed_memory() -> bool:
    """Stop the C library from handing freed memory back, for the rest of this process and for all models in it alike.

    Peak memory stays what it is. Call it where the process is yours (a server, a benchmark, the command line), never in
    a library that is imported by others.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        # musl has no such function, or one that does nothing and says 0.
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)) and bool(
            mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        )
    except (OSError, AttributeError):
        return False
