"""What of a model is masked, packed or dense, and which kernel runs it."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import kernels
from ..core import require_module
from ..layouts import PackedWeight
from .packed_linear import PackedLinear
from .sparse_tensor import SparseTensor

_MASK = "weight_mask"


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks of all sparsified layers.

    Args:
        model: its layers hold a `weight_mask` beside their weight, or a packed weight.

    Returns:
        Module name -> bool of the weight's own shape, True = keep, in the order of the model.

    Raises:
        ModelError: `model` is no module.
    """
    require_module(model)
    found = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        mask = module._buffers.get(_MASK)
        if isinstance(weight, SparseTensor):
            mask = kept_places(weight.packed)
            found[name] = mask.T.contiguous() if weight.transposed else mask.view(weight.shape)
        elif mask is not None:
            found[name] = mask
    return found


def kept_places(packed: PackedWeight) -> Tensor:
    """Mask of a packed weight: `(out, in)` bool, True = keep. A kept value that happens to be zero counts as kept."""
    out, in_ = packed.shape
    if any(tensor.shape == (out, in_) and tensor.is_floating_point() for tensor in packed.tensors.values()):
        # The layout stores every value: its zeros are all that tells.
        return packed.unpack() != 0
    ones = {
        name: torch.ones_like(tensor) if name == "values" or tensor.is_floating_point() else tensor
        for name, tensor in packed.tensors.items()
    }
    return replace(packed, tensors=ones).unpack() != 0


@final
@dataclass(frozen=True)
class DispatchRow:
    """How one layer runs.

    Attributes:
        name: module name.
        shape: `(out, in)`.
        state: `packed`, `masked` (zeros that nobody skips) or `dense`.
        pattern: text of the packed weight's pattern, else empty.
        layout: its layout, else empty.
        kernel: the kernel that would run now; `torch dense` for masked and dense layers.
        reasons: why not packed, or why the kernels before the chosen one are not able.
        dense_runs: how often it ran dense because that was asked for where no kernel was able.
    """

    name: str
    shape: tuple[int, int]
    state: str
    pattern: str
    layout: str
    kernel: str
    reasons: tuple[str, ...]
    dense_runs: int = 0


def dispatch_report(model: nn.Module, tokens: int = 1) -> list[DispatchRow]:
    """One row per layer with a weight matrix: what runs it, and why.

    Args:
        model: looked at, never run.
        tokens: input rows of a call; kernels differ in how many they like.

    Raises:
        ModelError: `model` is no module.
        KernelError: `tokens` is no whole number, or below 0.
    """
    require_module(model)
    kernels.check_tokens(tokens)
    rows = []
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(weight, SparseTensor):
            # Only convolutions are seen with more dimensions than a matrix.
            groups = 0 if weight.view_shape is None else int(getattr(module, "groups", 1))
            rows.append(_packed_row(name, weight.packed, tokens, groups))
        elif isinstance(module, PackedLinear):
            rows.append(_packed_row(name, module.packed, tokens, 0))
        elif parametrize.is_parametrized(module, "weight"):
            shape = _matrix(getattr(module.parametrizations["weight"], "original", None))
            reason = "parametrised: its weight is computed, and its zeros are multiplied"
            rows.append(DispatchRow(name, shape, "masked", "", "", "torch dense", (reason,)))
        elif isinstance(weight, Tensor) and weight.dim() >= 2 and not isinstance(module, nn.Embedding):
            masked = module._buffers.get(_MASK) is not None
            reason = "masked but not packed: its zeros are multiplied" if masked else "not sparsified"
            rows.append(
                DispatchRow(name, _matrix(weight), "masked" if masked else "dense", "", "", "torch dense", (reason,))
            )
    return rows


def _matrix(weight: Tensor | None) -> tuple[int, int]:
    if weight is None or weight.dim() < 2:
        return (0, 0)
    return int(weight.shape[0]), int(weight[0].numel())


def _packed_row(name: str, packed: PackedWeight, tokens: int, groups: int) -> DispatchRow:
    """`groups` of channels of a convolution; 0 for other layers."""
    said = kernels.why_not_conv2d(packed, groups) if groups else kernels.why_not(packed, tokens)
    refused = tuple(f"{kernel}: {'; '.join(reasons)}" for kernel, reasons in said.items() if reasons)
    chosen = "none"
    if any(not reasons for reasons in said.values()):
        chosen = kernels.which_conv2d(packed, groups) if groups else kernels.which(packed, tokens)
    dense_runs = kernels.dense_runs(packed)
    if dense_runs and chosen == "none":
        return DispatchRow(
            name,
            packed.shape,
            "dense",
            str(packed.pattern),
            packed.layout,
            "torch dense (on request)",
            refused,
            dense_runs,
        )
    # The layout `masked` multiplies its zeros: it must count as what it is.
    state = "masked" if packed.layout == "masked" else "packed"
    return DispatchRow(name, packed.shape, state, str(packed.pattern), packed.layout, chosen, refused, dense_runs)


def dense_layers(model: nn.Module) -> int:
    """How many layers run dense, the masked ones included: what a report must not hide."""
    return sum(1 for row in dispatch_report(model) if row.state != "packed")
