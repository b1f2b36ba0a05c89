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
_SMALLEST_MMAP_THRESHOLD = 64 << 10
_TRIM_THRESHOLD = 1 << 30


def keep_freed_memory() -> bool:
    """Stop the C library from handing freed memory back, for the rest of this process and for all models in it alike.

    Peak memory stays what it is. Call it where the process is yours (a server, a benchmark, the command line), never in
    a library that is imported by others.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    return _set_thresholds(_LARGEST_MMAP_THRESHOLD, _TRIM_THRESHOLD)


def return_freed_memory() -> bool:
    """Hand freed tensors back to the system at once, for the rest of this process: the opposite of `keep_freed_memory`.

    For work that must stay below a bound. By default glibc raises the size from which memory is returned by itself, up
    to 32 MiB, each time something larger is freed, and keeps what is smaller in its heap, where a small tensor that
    lives on holds the pages of large ones that are gone.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    return _set_thresholds(_SMALLEST_MMAP_THRESHOLD, _SMALLEST_MMAP_THRESHOLD)


def trim_heap() -> bool:
    """Hand back now what the C library holds of freed memory below the threshold; False where it is not glibc."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def _set_thresholds(mmap: int, trim: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        # musl has no such function, or one that does nothing and says 0.
        return bool(mallopt(_M_MMAP_THRESHOLD, mmap)) and bool(mallopt(_M_TRIM_THRESHOLD, trim))
    except (OSError, AttributeError):
        return False
