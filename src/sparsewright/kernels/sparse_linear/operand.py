"""The native form of a packed weight, made once: addresses, sizes, and how costly a token is."""

import weakref
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..._native import Operand, QuickCall
from ...core import NM, NMG, AbstractPattern, KernelError, Transposable, instruction_set
from ...layouts import PackedWeight
from ...layouts.vector import block_columns
from .dispatch import choose_native, why_not
from .int8_operand import PLANES as INT8_PLANES
from .int8_operand import NativeInt8Operand, make_int8_operand
from .nmg_operand import NativeNmgOperand, make_nmg_operand
from .no_kernel import no_kernel
from .operand_checks import check_vector
from .strips import Strips, strips_of
from .threads import threads_for

_PLANES = {
    "vector": ("values", "index", "pointers"),
    "int8_weights": ("values", "index", "pointers", "scale"),
    "int8": INT8_PLANES,
    "nmg": ("values", "index"),
}

# Numbers as in problem.hpp.
VALUE_CODES = {torch.float32: 0, torch.float16: 1, torch.int8: 2}


@final
@dataclass(frozen=True, slots=True)
class NativeOperand:
    """What a call needs, beside x.

    Attributes:
        native: the C++ object; holds addresses only.
        tensors: values, index, pointers and scales if any, kept alive.
        out, in_, group: sizes of the weight and its row groups.
        density: kept columns / all.
        strips: what the strip kernels read, of a weight that keeps two of every four rows and columns.
    """

    native: Operand
    tensors: tuple[Tensor, ...]
    out: int
    in_: int
    group: int
    density: float
    strips: Strips | None

    def run(self, x: Tensor, bias: Tensor | None, y: Tensor, tokens: int, activation: int = 0) -> None:
        """Fill y `(tokens, out)`, contiguous, from x: float32 on the CPU, `in` contiguous, rows evenly spaced."""
        kernel, threads = self.plan(tokens)
        stride = x.stride(-2) if x.dim() == 2 and tokens > 1 else self.in_
        address = 0 if bias is None else bias.data_ptr()
        self.native.linear(x.data_ptr(), stride, tokens, address, y.data_ptr(), kernel, threads, activation)

    def plan(self, tokens: int) -> tuple[int, int]:
        """Code of the kernel and number of threads for so many tokens."""
        kept = self.density * self.out * self.in_
        threads = threads_for(kept * tokens, kept * self.tensors[0].element_size())
        return choose_native(self.group, tokens, self.in_, self.density, self.strips is not None).code, threads


def make_operand(
    values: Tensor,
    index: Tensor,
    pointers: Tensor,
    out: int,
    in_: int,
    kept_per_8: int,
    scale: Tensor | None = None,
) -> NativeOperand:
    """Operand of the vector layout's tensors.

    Args:
        values: `(kept, G)` float32, float16 or int8.
        index: `(kept,)` uint8.
        pointers: `(blocks, groups + 1)` int32.
        out, in_: shape of the weight.
        kept_per_8: see `kept_per_8()`; 0 is always right.
        scale: `(groups * G)` float32, what rows of int8 values are multiplied by; None: nothing.

    Raises:
        KernelError: they are not the operand of such a weight.
    """
    group = values.shape[1] if values.dim() == 2 else 0
    check_vector(values, index, pointers, scale, out, in_, group, kept_per_8)
    tensors = [tensor.contiguous() for tensor in (values, index, pointers, *(() if scale is None else (scale,)))]
    blocks = pointers.shape[0]
    instruction_set()  # a wrong SPARSEWRIGHT_ISA is told in one sentence
    native = Operand(
        tensors[0].data_ptr(),
        VALUE_CODES[values.dtype],
        0 if scale is None else tensors[3].data_ptr(),
        tensors[1].data_ptr(),
        tensors[2].data_ptr(),
        out,
        in_,
        group,
        blocks,
        block_columns(in_, blocks),
        kept_per_8,
    )
    density = index.numel() / ((pointers.shape[1] - 1) * in_)
    strips = strips_of(index, pointers, out, in_) if group == 1 else None
    if strips is not None:
        native.set_strips(strips.records.data_ptr(), strips.counts.data_ptr())
    return NativeOperand(native, tuple(tensors), out, in_, group, density, strips)


def kept_per_8(pattern: AbstractPattern) -> int:
    """How many of every aligned 8 columns a row keeps, where that is 1, 2 or 4 for certain; else 0."""
    if not isinstance(pattern, NM | Transposable) or pattern.group != 1 or 8 % pattern.m:
        return 0
    kept = pattern.n * 8 // pattern.m
    return kept if kept in (1, 2, 4) else 0


# By identity, because looking up a weak reference costs more than a small kernel. Each entry leaves with its weight,
# and is made again when its tensors have moved (to shared memory, say) or were written to.
_operands: dict[int, NativeOperand | NativeInt8Operand | NativeNmgOperand] = {}
# The same weights, called without Python on the way: (x, bias, code of the activation) to y, or None where the call
# must go the long way. A weight is in it from its first ordinary call on.
quick_calls: dict[int, QuickCall] = {}


def native_operand(packed: PackedWeight) -> NativeOperand | NativeInt8Operand | NativeNmgOperand:
    """The operand of a packed weight in the layout `vector`, `int8` or `nmg`, from the cache or made now.

    Raises:
        KernelError: no native kernel reads this weight.
    """
    known = quick_calls.get(id(packed))
    if known is not None and known.planes_stand():
        return _operands[id(packed)]
    wanted = _PLANES.get(packed.layout, ())
    missing = [name for name in wanted if name not in packed.tensors]
    if missing:
        raise KernelError(
            f"A weight of the layout {packed.layout} has {', '.join(wanted)}; {', '.join(missing)} is missing. Pack it "
            "again, or load it again."
        )
    reasons = why_not(packed, 2)
    operand: NativeOperand | NativeInt8Operand | NativeNmgOperand
    if not reasons["int8_lane"]:
        operand = make_int8_operand(packed.tensors, *packed.shape)
    elif not reasons["nmg_lane"] and isinstance(packed.pattern, NMG):
        operand = make_nmg_operand(packed.tensors["values"], packed.tensors["index"], *packed.shape, packed.pattern.m)
    elif not reasons["token_lane"]:
        tensors = packed.tensors
        operand = make_operand(
            tensors["values"],
            tensors["index"],
            tensors["pointers"],
            *packed.shape,
            kept_per_8(packed.pattern),
            tensors.get("scale"),
        )
    elif packed.device.type == "cuda":
        raise KernelError(f"Sparse linear takes x on the device of the weight, {packed.device}, got x on cpu. Move it.")
    else:
        raise no_kernel(reasons, packed)
    _operands[id(packed)] = operand
    planes = list(packed.tensors.values())
    quick_calls[id(packed)] = operand.native.quick_call(planes, operand.plan, operand.out, operand.in_)
    if known is None:
        weakref.finalize(packed, _forget, id(packed))
    return operand


def _forget(key: int) -> None:
    _operands.pop(key, None)
    quick_calls.pop(key, None)
