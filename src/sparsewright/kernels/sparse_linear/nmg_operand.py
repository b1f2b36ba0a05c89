"""The native form of an n:m:g weight."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..._native import NmgOperand
from ...core import instruction_set
from ...core.grouped import kept_rows
from .operand_checks import check_nmg
from .threads import threads_for


@final
@dataclass(frozen=True, slots=True)
class NativeNmgOperand:
    """What a call needs, beside x.

    Attributes:
        native: the C++ object; holds addresses only.
        tensors: values, index and the rows of the patterns, kept alive.
        out, in_: sizes of the weight.
    """

    native: NmgOperand
    tensors: tuple[Tensor, Tensor, Tensor]
    out: int
    in_: int

    def run(self, x: Tensor, bias: Tensor | None, y: Tensor, tokens: int, activation: int = 0) -> None:
        """Fill y `(tokens, out)`, contiguous, from x: float32 on the CPU, `in` contiguous, rows evenly spaced."""
        _, threads = self.plan(tokens)
        stride = x.stride(-2) if x.dim() == 2 and tokens > 1 else self.in_
        address = 0 if bias is None else bias.data_ptr()
        self.native.linear(x.data_ptr(), stride, tokens, address, y.data_ptr(), threads, activation)

    def plan(self, tokens: int) -> tuple[int, int]:
        """0, there being one kernel, and the number of threads for so many tokens."""
        kept = self.tensors[0].numel()
        return 0, threads_for(kept * tokens, 4 * kept)


def make_nmg_operand(values: Tensor, index: Tensor, out: int, in_: int, m: int) -> NativeNmgOperand:
    """Operand of the n:m:g layout's tensors.

    Args:
        values: `(chunks, blocks, C(m, n), g, n)` float32 or float16.
        index: `(chunks, blocks, C(m, n), g, 1)` int16.
        out, in_: shape of the weight.
        m: rows of a block.

    Raises:
        KernelError: they are not the operand of such a weight.
    """
    check_nmg(values, index, out, in_, m)
    _, _, patterns, g, n = values.shape
    tensors = (values.contiguous(), index.contiguous(), kept_rows(n, m))
    instruction_set()  # a wrong SPARSEWRIGHT_ISA is told in one sentence
    addresses = [tensor.data_ptr() for tensor in tensors]
    half = values.dtype == torch.float16
    native = NmgOperand(addresses[0], half, addresses[1], addresses[2], out, in_, n, m, g, patterns)
    return NativeNmgOperand(native, tensors, out, in_)
