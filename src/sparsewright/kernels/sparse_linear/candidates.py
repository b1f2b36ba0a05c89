"""Which kernels there are for sparse linear, and what each of them cannot do.

| kernel | how | serves |
| --- | --- | --- |
| `single_token` | weights streamed once | 1 token |
| `row_lane` | vectors of output rows | groups of 4, 8, 16 rows; 2 tokens or more |
| `token_lane` | vectors of tokens, weights broadcast | every group; 2 tokens or more |
| `int8_lane` | vectors of tokens, four bytes to a multiplication | the layout `int8`, dense rows included |
| `nmg_lane` | vectors of tokens, sums of a pattern's rows kept over its columns | the layout `nmg` |
| `masked_dense` | torch's dense linear on a weight with zeros | the layout `masked`, asked for by name |
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from ...layouts import PackedWeight


@dataclass(frozen=True)
class AbstractCandidate(ABC):
    """One way to run sparse linear."""

    name: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        """Reasons why it cannot multiply this weight with so many tokens (float32, CPU); empty if it can."""

    def _why_not_layout(self, packed: PackedWeight) -> list[str]:
        if packed.layout in self.layouts:
            return []
        advice = " (bitmask is a storage form: unpack it and pack it again)" if packed.layout == "bitmask" else ""
        known = " or ".join(repr(layout) for layout in self.layouts)
        return [f"it reads the layout {known}, the weight has {packed.layout!r}{advice}"]


class AbstractNative(AbstractCandidate):
    """A kernel of the native library: layout `vector` with float32 or float16 values, or `int8_weights`, CPU.

    Attributes:
        code: its number in `problem.hpp`.
        groups: row groups that it knows.
        least_tokens, most_tokens: batches that it serves.
    """

    layouts = ("vector", "int8_weights")
    code: ClassVar[int]
    groups: ClassVar[tuple[int, ...]]
    least_tokens: ClassVar[int]
    most_tokens: ClassVar[int | None] = None

    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        reasons = self._why_not_layout(packed)
        if reasons:
            return reasons
        if packed.layout == "vector" and packed.value_dtype not in (torch.float32, torch.float16):
            reasons.append(f"it multiplies float32 and float16 values, the weight has {packed.value_dtype}")
        if packed.device.type != "cpu":
            reasons.append(f"it runs on the CPU, the weight is on {packed.device}")
        return reasons + self.why_not_call(packed.tensors["values"].shape[1], tokens)

    def why_not_call(self, group: int, tokens: int) -> list[str]:
        """Reasons against this row group and so many tokens."""
        reasons = []
        if group not in self.groups:
            known = ", ".join(map(str, self.groups))
            reasons.append(f"it needs rows sharing a choice in groups of {known}, the weight has groups of {group}")
        if tokens < self.least_tokens:
            reasons.append(f"it serves {self.least_tokens} tokens or more, got {tokens}")
        if self.most_tokens is not None and tokens > self.most_tokens:
            reasons.append(f"it serves at most {self.most_tokens} tokens, got {tokens}")
        return reasons


@final
class TokenLane(AbstractNative):
    """Vectors of 8 or 16 tokens, weights broadcast; x and y are transposed inside."""

    name = "token_lane"
    code = 0
    groups = (1, 2, 4, 8, 16)
    least_tokens = 2


@final
class RowLane(AbstractNative):
    """Vectors of output rows, inputs broadcast; nothing is transposed."""

    name = "row_lane"
    code = 1
    groups = (4, 8, 16)
    least_tokens = 2


@final
class SingleToken(AbstractNative):
    """One token: weights are read once, in order."""

    name = "single_token"
    code = 2
    groups = (1, 2, 4, 8, 16)
    least_tokens = 0
    most_tokens = 1


@final
class Int8Lane(AbstractCandidate):
    """int8 weights; x is rounded to 7 bits, one range per token, from 2 tokens on."""

    name = "int8_lane"
    layouts = ("int8",)

    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        reasons = self._why_not_layout(packed)
        if not reasons and packed.device.type != "cpu":
            reasons.append(f"it runs on the CPU, the weight is on {packed.device}")
        return reasons


@final
class NmgLane(AbstractCandidate):
    """n:m:g: weights and columns read in order, one row of sums exchanged from pattern to pattern."""

    name = "nmg_lane"
    layouts = ("nmg",)

    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        reasons = self._why_not_layout(packed)
        if reasons:
            return reasons
        if packed.value_dtype not in (torch.float32, torch.float16):
            reasons.append(f"it multiplies float32 and float16 values, the weight has {packed.value_dtype}")
        if packed.device.type != "cpu":
            reasons.append(f"it runs on the CPU, the weight is on {packed.device}")
        return reasons


@final
class MaskedDense(AbstractCandidate):
    """torch's dense linear: no faster than dense, chosen by choosing the layout `masked`."""

    name = "masked_dense"
    layouts = ("masked",)

    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        return self._why_not_layout(packed)


NATIVE: tuple[AbstractNative, ...] = (TokenLane(), RowLane(), SingleToken())
CANDIDATES: tuple[AbstractCandidate, ...] = (*NATIVE, Int8Lane(), NmgLane(), MaskedDense())
