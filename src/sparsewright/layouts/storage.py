"""Bits in bytes, and the checks that every file form starts with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import BundleError


def pack_bits(bits: Tensor) -> Tensor:
    """Bool of any shape, flattened, eight to a byte, lowest bit first; pad bits are zero. Returns 1-D uint8."""
    flat = bits.reshape(-1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    # Shifted ors run over whole columns; a sum along eight would not be vectorised.
    packed = flat[:, 0].clone()
    for place in range(1, 8):
        packed |= flat[:, place] << place
    return packed


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first `count` bits of what `pack_bits` wrote: 1-D bool."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> places) & 1
    return bits.reshape(-1)[:count].to(torch.bool)


def stored_tensor(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a file form, checked.

    Args:
        tensors: what the file held.
        name: which of them.
        dtype: what it must be.
        shape: what it must be; -1 allows any size there.

    Raises:
        BundleError: missing, or of another dtype or shape, or with a value that is not finite.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise BundleError(f"The packed weight has no tensor {name!r}: the file is damaged. Write it again.")
    sizes_agree = tensor.dim() == len(shape) and all(a in (-1, b) for a, b in zip(shape, tensor.shape))
    if tensor.dtype != dtype or not sizes_agree:
        raise BundleError(
            f"The tensor {name!r} of a packed weight must be {dtype} of shape {shape}, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}: the file is damaged. Write it again."
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise BundleError(f"The tensor {name!r} of a packed weight holds NaN or infinity. Write the file again.")
    return tensor.contiguous()
