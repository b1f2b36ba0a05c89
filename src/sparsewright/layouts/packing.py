"""The door to all layouts: `pack` checks what comes, reads off the pattern if none is given, chooses a layout."""

import torch
from torch import Tensor

from ..core import AbstractPattern, LayoutError, parse_pattern, require_finite
from .base import VALUE_DTYPES, PackedWeight, layouts
from .inference import infer_pattern

# What `auto` tries, best first; of floating values the last one takes every weight.
AUTO_ORDER = ("nmg", "vector", "int8", "int8_weights", "masked")


def pack(
    weight: Tensor,
    mask: Tensor,
    layout: str = "auto",
    pattern: AbstractPattern | str | None = None,
    value_dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Store what a mask keeps of a weight.

    Args:
        weight: `(out, in)`, floating point, finite.
        mask: `(out, in)` bool, True = keep.
        layout: a registered layout, or `auto`: `nmg` for n:m:g, else `vector` where it fits, else `masked`;
            for int8 values `int8` where rows share their choice, else `int8_weights`.
        pattern: the rule that the mask obeys; None reads it off the mask (`infer_pattern`).
        value_dtype: float32, float16, bfloat16 or int8 (one scale per row); None keeps the weight's (float64 becomes
            float32), or int8 for the layout `int8`.

    Returns:
        The packed weight; `.unpack()` equals `where(mask, weight, 0)` rounded to the value dtype.

    Raises:
        LayoutError: shapes or dtypes do not match, the mask breaks the pattern, or the layout cannot store it.
        NumericError: the weight is not finite, or overflows the value dtype.
    """
    _check_pair(weight, mask)
    weight = weight.detach()
    dtype = _value_dtype(weight, torch.int8 if layout == "int8" and value_dtype is None else value_dtype)
    require_finite(weight, "weight to pack")
    rule = infer_pattern(mask) if pattern is None else parse_pattern(pattern)
    shape = (weight.shape[0], weight.shape[1])
    # No layout stores tiles that are cut off: such masks are stored by what is read off them.
    broken = rule.with_edge("error").why_not(shape) or rule.check_mask(mask)
    if broken:
        raise LayoutError(f"The mask must obey {rule}: {'; '.join(broken)}. Solve it again, or leave `pattern` out.")
    if dtype != weight.dtype:
        # int8 values have float32 scales.
        held = torch.float32 if dtype == torch.int8 else dtype
        require_finite(torch.where(mask, weight, 0).to(held), f"weight to pack, cast to {held},")
    name = choose_layout(rule, shape, dtype) if layout == "auto" else layout
    chosen = layouts.get(name)
    reasons = chosen.why_not(rule, shape)
    if dtype not in chosen.value_dtypes:
        reasons = [*reasons, f"it holds {', '.join(map(str, chosen.value_dtypes))} values, not {dtype}"]
    if reasons:
        raise LayoutError(
            f"The layout {name!r} cannot store {rule} of shape {shape}: {'; '.join(reasons)}. Use layout='auto'."
        )
    return chosen.pack(weight, mask, rule, dtype)


def float_layout(pattern: AbstractPattern, shape: tuple[int, int]) -> str:
    """The layout that multiplies floating values of a pattern fastest: `nmg` where it stores it, else `vector`."""
    return "vector" if layouts.get("nmg").why_not(pattern, shape) else "nmg"


def _check_pair(weight: Tensor, mask: Tensor) -> None:
    if not isinstance(weight, Tensor) or not isinstance(mask, Tensor):
        raise LayoutError(
            f"Packing takes tensors, got {type(weight).__name__} and {type(mask).__name__}. Use torch.as_tensor."
        )
    if weight.dim() != 2 or weight.shape != mask.shape or mask.dtype != torch.bool or weight.numel() == 0:
        raise LayoutError(
            "Packing takes a weight (out, in) and a bool mask of the same shape, got "
            f"{tuple(weight.shape)} {weight.dtype} and {tuple(mask.shape)} {mask.dtype}. "
            "Flatten a convolution to (out, in*kh*kw) first."
        )
    if not weight.is_floating_point():
        raise LayoutError(f"Packing takes a floating-point weight, got {weight.dtype}. Dequantise it first.")
    if weight.device != mask.device:
        raise LayoutError(f"Weight and mask must be on one device, got {weight.device} and {mask.device}.")


def _value_dtype(weight: Tensor, asked: torch.dtype | None) -> torch.dtype:
    dtype = asked or (torch.float32 if weight.dtype == torch.float64 else weight.dtype)
    if dtype not in (*VALUE_DTYPES, torch.int8):
        known = ", ".join(str(known) for known in (*VALUE_DTYPES, torch.int8))
        raise LayoutError(f"Kept values can be {known}, got {dtype}. Pass value_dtype=torch.float32.")
    return dtype


def choose_layout(pattern: AbstractPattern, shape: tuple[int, int], dtype: torch.dtype) -> str:
    """The layout that `auto` means.

    Args:
        pattern: the rule of the mask.
        shape: `(out, in)`.
        dtype: of the kept values.

    Raises:
        LayoutError: none stores such a weight, with each one's reasons.
    """
    able = [name for name in AUTO_ORDER if name in layouts.names() and dtype in layouts.get(name).value_dtypes]
    reasons = {name: layouts.get(name).why_not(pattern, shape) for name in able}
    for name, against in reasons.items():
        if not against:
            return name
    why = "; ".join(f"{name}: {', '.join(against)}" for name, against in reasons.items())
    raise LayoutError(f"No layout stores {pattern} of shape {shape} with {dtype} values. {why}.")
