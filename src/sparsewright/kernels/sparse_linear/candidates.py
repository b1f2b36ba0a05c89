"""Which kernels there are for sparse linear, and what each of them cannot do.

| kernel | how | serves |
| --- | --- | --- |
| `single_token` | weights streamed once | 1 token |
| `row_lane` | vectors of output rows | groups of 4, 8, 16 rows; 2 tokens or more |
| `token_lane` | vectors of tokens, weights broadcast | every group; 2 tokens or more |
| `strip_lane` | the same, a vector of x read once for two rows | `2:4t` on AVX-512; 33 tokens or more |
| `int8_lane` | vectors of tokens, four bytes to a multiplication | the layout `int8`, dense rows included |
| `nmg_lane` | vectors of tokens, sums of a pattern's rows kept over its columns | the layout `nmg` |
| `triton_few_tokens`, `triton_tensor_core`, `triton_lanes` | on a CUDA device, see `triton.py` | the layout `vector` |
| `semi_structured` | torch's sparse tensor cores | the layout `semi_structured` on a CUDA device |
| `masked_dense` | torch's dense linear on a weight with zeros | the layout `masked`, asked for by name |
"""

import importlib.util
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ...layouts import PackedWeight
from .operand_checks import check_vector
from .strips import strips_of


@dataclass(frozen=True)
class AbstractCandidate(ABC):
    """One way to run sparse linear."""

    name: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        """Reasons why it cannot multiply this weight with so many tokens; empty if it can.

        x is float32 on the CPU, and of the values' dtype on a CUDA device.
        """

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
        values = packed.tensors.get("values")
        if values is None or values.dim() != 2:
            return [*reasons, "it reads values (kept, G), the weight has none"]
        return reasons + self.why_not_call(values.shape[1], tokens) + ([] if reasons else self._why_not_places(packed))

    def _why_not_places(self, packed: PackedWeight) -> list[str]:
        """Reasons against what the weight keeps where."""
        return []

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
class StripLane(AbstractNative):
    """Vectors of tokens, strips of four rows of which two keep each column.

    Narrower tiles of tokens do not repay the six runs of a strip. It adds up in an order of its own, so that a weight
    which it serves is left to it at every larger batch, whatever was measured.
    """

    name = "strip_lane"
    code = 3
    groups = (1,)
    least_tokens = 33

    def _why_not_places(self, packed: PackedWeight) -> list[str]:
        if packed.tensors["values"].shape[1] != 1 or has_strips(packed):
            return []
        return ["it needs two of every four rows and columns kept (2:4t), and AVX-512"]


def has_strips(packed: PackedWeight) -> bool:
    """Whether a weight of the vector layout on the CPU keeps two of every four rows and columns."""
    values, index, pointers = (packed.tensors[name] for name in ("values", "index", "pointers"))
    if type(index) is not Tensor or not index.is_cpu:
        return False
    # Tensors of a damaged weight lead anywhere.
    check_vector(values, index, pointers, packed.tensors.get("scale"), *packed.shape, group=1)
    return strips_of(index, pointers, *packed.shape) is not None


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


def _why_no_cuda(packed: PackedWeight) -> list[str]:
    if packed.device.type == "cuda":
        return []
    missing = "" if torch.cuda.is_available() else ", and torch finds none on this machine"
    return [f"it runs on a CUDA device{missing}; the weight is on {packed.device}"]


class AbstractTriton(AbstractCandidate):
    """A Triton kernel: layout `vector` on a CUDA device, or on the CPU in Triton's interpreter.

    Attributes:
        value_dtypes: of the kept values; x may be of another of them where all are listed.
        most_tokens: the largest batch that it serves.
    """

    layouts = ("vector",)
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float16, torch.bfloat16)
    most_tokens: ClassVar[int | None] = None

    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        reasons = self._why_not_layout(packed)
        if reasons:
            return reasons
        if importlib.util.find_spec("triton") is None:
            reasons.append("it needs Triton, which is not installed: pip install triton")
        # A door for tests; the interpreter is far slower than anything else here.
        if os.environ.get("TRITON_INTERPRET") != "1":
            reasons += _why_no_cuda(packed)
        return reasons + self.why_not_call(packed.value_dtype, packed.value_dtype, tokens)

    def why_not_call(self, x_dtype: torch.dtype, value_dtype: torch.dtype, tokens: int) -> list[str]:
        """Reasons against these dtypes and so many tokens."""
        reasons = []
        if value_dtype not in self.value_dtypes:
            known = ", ".join(map(str, self.value_dtypes))
            reasons.append(f"it multiplies {known} values, the weight has {value_dtype}")
        elif x_dtype != value_dtype and torch.float32 not in self.value_dtypes:
            reasons.append(f"it takes x in the dtype of the values, got {x_dtype} and {value_dtype}")
        if self.most_tokens is not None and tokens > self.most_tokens:
            reasons.append(f"it serves at most {self.most_tokens} tokens, got {tokens}")
        return reasons


@final
class TritonFewTokens(AbstractTriton):
    """Up to 4 tokens: weights stream once per token, over many programs."""

    name = "triton_few_tokens"
    most_tokens = 4


@final
class TritonTensorCore(AbstractTriton):
    """16-bit tokens and values on tensor cores; kept columns of x are gathered."""

    name = "triton_tensor_core"
    value_dtypes = (torch.float16, torch.bfloat16)


@final
class TritonLanes(AbstractTriton):
    """Vectors of tokens, weights broadcast, float32 multiply-adds; serves every call."""

    name = "triton_lanes"


@final
class SemiStructured(AbstractCandidate):
    """torch's 2:4 on sparse tensor cores: cuSPARSELt, or CUTLASS on compute capability 8."""

    name = "semi_structured"
    layouts = ("semi_structured",)

    def why_not(self, packed: PackedWeight, tokens: int) -> list[str]:
        reasons = self._why_not_layout(packed)
        if reasons:
            return reasons
        if packed.value_dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"it multiplies float16 and bfloat16 values, the weight has {packed.value_dtype}")
        absent = _why_no_cuda(packed)
        if absent:
            return reasons + absent
        major, minor = torch.cuda.get_device_capability(packed.device)
        if major < 8:
            reasons.append(f"sparse tensor cores come with compute capability 8.0, this device has {major}.{minor}")
        elif major > 8 and not torch.backends.cusparselt.is_available():
            reasons.append(f"on compute capability {major}.{minor} it needs cuSPARSELt, which this torch lacks")
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


NATIVE: tuple[AbstractNative, ...] = (TokenLane(), RowLane(), SingleToken(), StripLane())
TRITON: tuple[AbstractTriton, ...] = (TritonFewTokens(), TritonTensorCore(), TritonLanes())
CANDIDATES: tuple[AbstractCandidate, ...] = (*NATIVE, *TRITON, Int8Lane(), NmgLane(), SemiStructured(), MaskedDense())
