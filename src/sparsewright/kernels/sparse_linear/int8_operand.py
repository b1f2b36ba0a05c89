"""The native form of an int8 weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from ..._native import Int8Operand
from ...core import instruction_set
from .operand_checks import check_int8
from .threads import threads_for

PLANES = ("values", "columns", "pointers", "scale", "sums")


@final
@dataclass(frozen=True, slots=True)
class NativeInt8Operand:
    """What a call needs, beside x.

    Attributes:
        native: the C++ object; holds addresses only.
        tensors: the layout's tensors, kept alive.
        out, in_: sizes of the weight.
        kept: multiplications per token.
    """

    native: Int8Operand
    tensors: tuple[Tensor, ...]
    out: int
    in_: int
    kept: int

    def run(self, x: Tensor, bias: Tensor | None, y: Tensor, tokens: int, activation: int = 0) -> None:
        """Fill y `(tokens, out)`, contiguous, from x: float32 on the CPU, `in` contiguous, rows evenly spaced."""
        _, threads = self.plan(tokens)
        stride = x.stride(-2) if x.dim() == 2 and tokens > 1 else self.in_
        address = 0 if bias is None else bias.data_ptr()
        self.native.linear(x.data_ptr(), stride, tokens, address, y.data_ptr(), threads, activation)

    def plan(self, tokens: int) -> tuple[int, int]:
        """0, there being one kernel, and the number of threads for so many tokens."""
        # Four bytes are multiplied where one float would be.
        return 0, threads_for(self.kept * tokens / 4, self.kept)


def make_int8_operand(tensors: Mapping[str, Tensor], out: int, in_: int) -> NativeInt8Operand:
    """Operand of the int8 layout's tensors (see `layouts.int8`) for a weight `(out, in)`.

    Raises:
        KernelError: they are not the operand of such a weight.
    """
    values, columns, pointers, scale, sums = (tensors[name] for name in PLANES)
    check_int8(values, columns, pointers, scale, sums, out, in_)
    held = tuple(tensors[name].contiguous() for name in PLANES)
    values, columns, pointers, scale, sums = held
    instruction_set()  # a wrong SPARSEWRIGHT_ISA is told in one sentence
    native = Int8Operand(
        values.data_ptr(),
        columns.data_ptr() if columns.numel() else 0,
        pointers.data_ptr(),
        scale.data_ptr(),
        sums.data_ptr(),
        out,
        in_,
        values.shape[1],
    )
    return NativeInt8Operand(native, held, out, in_, values.numel())
