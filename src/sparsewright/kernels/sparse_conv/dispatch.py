"""Which kernel convolves with a packed weight, and why not the others.

| kernel | how | serves |
| --- | --- | --- |
| `pixel_lane` | vectors of output pixels, weights broadcast; inputs are unfolded tile by tile in the cache | `vector` |
| `masked_dense` | torch's dense convolution on a weight with zeros | the layout `masked`, asked for by name |
"""

import torch

from ...core import KernelError
from ...layouts import PackedWeight


def why_not_conv2d(packed: PackedWeight, groups: int = 1) -> dict[str, list[str]]:
    """What stands against each kernel for this weight.

    Args:
        packed: the weight `(out, channels / groups * kh * kw)`.
        groups: groups of channels.

    Returns:
        Kernel name -> reasons; an empty list means that it is able.
    """
    against = against_weight(packed, groups)
    if packed.layout == "vector" and packed.device.type != "cpu":
        against.append(f"it runs on the CPU, the weight is on {packed.device}")
    return {"pixel_lane": against, "masked_dense": _against_layout(packed, "masked")}


def which_conv2d(packed: PackedWeight, groups: int = 1) -> str:
    """Name of the kernel that `conv2d` runs for this weight.

    Raises:
        KernelError: no kernel is able, with each one's reasons.
    """
    said = why_not_conv2d(packed, groups)
    able = [name for name, against in said.items() if not against]
    if not able:
        raise no_kernel(said)
    return able[0]


def no_kernel(said: dict[str, list[str]]) -> KernelError:
    """The error that lists each candidate's reasons."""
    each = "; ".join(f"{name}: {', '.join(against)}" for name, against in said.items())
    return KernelError(
        f"No kernel runs sparse convolution here. {each}. Pack the weight in the layout 'vector' with float32 "
        "or float16 values and a pattern whose row groups fit, or leave the layer dense."
    )


def _against_layout(packed: PackedWeight, layout: str) -> list[str]:
    return [] if packed.layout == layout else [f"it reads the layout {layout!r}, the weight has {packed.layout!r}"]


def against_weight(packed: PackedWeight, groups: int) -> list[str]:
    """Reasons why the native kernel could not run this weight anywhere; empty if it could on the CPU."""
    reasons = _against_layout(packed, "vector")
    if reasons:
        return reasons
    if packed.value_dtype not in (torch.float32, torch.float16):
        reasons.append(f"it multiplies float32 and float16 values, the weight has {packed.value_dtype}")
    rows = packed.tensors["values"].shape[1]
    if groups > 1 and packed.shape[0] % (groups * rows):
        reasons.append(
            f"{packed.shape[0] // groups} outputs in each of the {groups} groups of channels are no multiple of the "
            f"{rows} rows that share a choice"
        )
    return reasons
