"""Which kernel runs a call: the first of the dispatch table's preferences that is able. Never dense silently."""

import functools
import math

import torch

from ..._native import forget_plans
from ...core import DispatchEntry, DispatchTable, KernelError, instruction_set, is_whole
from ...layouts import PackedWeight
from .candidates import CANDIDATES, NATIVE, TRITON, AbstractNative, StripLane
from .no_kernel import no_kernel
from .operators import registered

OP = "sparse_linear"

# Vectors of rows win small batches, where transposing is not repaid. Measured on AVX2 (Zen 3), one thread: groups of 16
# win by rows nearly everywhere, but not at 8 tokens, which just fill a vector, nor where a tile of x leaves the
# first-level cache and few weights are kept to hide it.
_AVX2 = (
    DispatchEntry(OP, ("row_lane", "token_lane"), group=4, tokens=(2, 3)),
    DispatchEntry(OP, ("row_lane", "token_lane"), group=8, tokens=(2, 8)),
    DispatchEntry(OP, ("token_lane", "row_lane"), group=16, tokens=(8, 9)),
    DispatchEntry(
        OP, ("token_lane", "row_lane"), group=16, tokens=(9, math.inf), in_=(1025, math.inf), density=(0, 0.2)
    ),
    DispatchEntry(OP, ("row_lane", "token_lane"), group=16),
)
# Measured on AVX-512 (Sapphire Rapids), one thread: a broadcast input feeds one multiply-add where tokens feed four.
_AVX512 = (
    DispatchEntry(OP, ("row_lane", "token_lane"), group=8, tokens=(2, 8)),
    DispatchEntry(OP, ("row_lane", "token_lane"), group=16, tokens=(2, 32)),
)
# Measured on the same machine with SSE4.1 and AVX without fused multiply-add forced, one thread; NEON as SSE4.1, whose
# vectors are as long, until somebody measures it.
_SHORT = (
    DispatchEntry(OP, ("row_lane", "token_lane"), group=4, tokens=(2, 4)),
    DispatchEntry(OP, ("row_lane", "token_lane"), group=8, tokens=(2, 16)),
    DispatchEntry(OP, ("row_lane", "token_lane"), group=16),
)
_BY_SET = {"avx512_vnni": _AVX512, "avx512": _AVX512, "avx_vnni": _AVX2, "avx2": _AVX2}
_STRIPS = next(kernel for kernel in NATIVE if isinstance(kernel, StripLane))
_measured = DispatchTable()


@functools.cache
def _built_in() -> DispatchTable:
    return DispatchTable(
        (
            DispatchEntry(OP, ("single_token",), tokens=(0, 2)),
            *_BY_SET.get(instruction_set(), _SHORT),
            DispatchEntry(OP, ("token_lane", "row_lane")),
        )
    )


def dispatch_table() -> DispatchTable:
    """The table in use: what was set last, in front of the built-in one of this processor's instruction set."""
    return _measured.over(_built_in())


def set_dispatch_table(measured: DispatchTable | None) -> None:
    """Prefer kernels as measured on this machine; None goes back to the built-in table."""
    global _measured
    _measured = DispatchTable() if measured is None else measured
    choose_native.cache_clear()
    forget_plans()


@functools.lru_cache(maxsize=4096)
def choose_native(group: int, tokens: int, in_: int, density: float, strips: bool = False) -> AbstractNative:
    """The native kernel to run for these sizes; `strips` says whether the weight has them.

    Raises:
        KernelError: none is able, with each one's reasons.
    """
    if strips and not _STRIPS.why_not_call(group, tokens):
        return _STRIPS
    by_name = {kernel.name: kernel for kernel in NATIVE if kernel is not _STRIPS}
    preferred = [by_name[name] for name in dispatch_table().prefer(OP, group, tokens, in_, density) if name in by_name]
    for kernel in (*preferred, *by_name.values()):
        if not kernel.why_not_call(group, tokens):
            return kernel
    raise no_kernel({kernel.name: kernel.why_not_call(group, tokens) for kernel in NATIVE})


def choose_triton(
    group: int, tokens: int, in_: int, density: float, x_dtype: torch.dtype, value_dtype: torch.dtype
) -> str:
    """Name of the Triton kernel to run: the table's, else the first that is able.

    Raises:
        KernelError: none is able, with each one's reasons.
    """
    reasons = {kernel.name: kernel.why_not_call(x_dtype, value_dtype, tokens) for kernel in TRITON}
    for name in (*dispatch_table().prefer(OP, group, tokens, in_, density), *reasons):
        if not reasons.get(name, ["it runs on another device"]):
            return name
    raise no_kernel(reasons)


def check_tokens(tokens: object) -> None:
    """Raise KernelError unless `tokens` counts rows. Sizes that torch.compile leaves open do."""
    if not isinstance(tokens, torch.SymInt) and not is_whole(tokens, 0):
        raise KernelError(f"Tokens are the rows of x, a whole number of 0 or more, got {tokens!r}.")


def require_packed(packed: object) -> None:
    """Raise KernelError unless it is a packed weight."""
    if not isinstance(packed, PackedWeight):
        advice = "Pass its .packed." if hasattr(packed, "packed") else "Make one with sw.pack."
        raise KernelError(f"Sparse linear takes a PackedWeight, got {type(packed).__name__}. {advice}")


def why_not(packed: PackedWeight, tokens: int = 1) -> dict[str, list[str]]:
    """What stands against each kernel for this weight and batch.

    Args:
        packed: the weight.
        tokens: rows of x.

    Returns:
        Kernel name -> reasons; an empty list means that it is able.

    Raises:
        KernelError: `tokens` is no whole number, or below 0; or the weight is no packed one.
    """
    check_tokens(tokens)
    require_packed(packed)
    return {candidate.name: candidate.why_not(packed, tokens) for candidate in (*CANDIDATES, *registered())}


def which(packed: PackedWeight, tokens: int = 1) -> str:
    """Name of the kernel that `linear` runs for this weight and batch.

    Raises:
        KernelError: no kernel is able, with each one's reasons.
    """
    reasons = why_not(packed, tokens)
    able = [name for name, against in reasons.items() if not against]
    if not able:
        raise no_kernel(reasons, packed)
    if packed.layout not in ("vector", "int8_weights") or able[0] not in {kernel.name for kernel in (*NATIVE, *TRITON)}:
        return able[0]
    values = packed.tensors["values"]
    density = values.shape[0] / max(1, -(-packed.shape[0] // values.shape[1]) * packed.shape[1])
    if packed.device.type == "cuda":
        return choose_triton(values.shape[1], tokens, packed.shape[1], density, values.dtype, values.dtype)
    strips = not reasons[_STRIPS.name]
    return choose_native(values.shape[1], tokens, packed.shape[1], density, strips).name
