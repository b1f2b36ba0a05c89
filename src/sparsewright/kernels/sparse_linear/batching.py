"""Sparse linear under `torch.vmap`: what it runs over becomes further tokens of one call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register_batching(library: torch.library.Library, name: str, *, bias: int | None = None) -> None:
    """Teach a registered operator what `torch.vmap` means for it.

    Args:
        library: the one the operator was defined in.
        name: of the operator, without namespace; its first argument is `(..., features)`, and so is its result.
        bias: position of an argument `(out,)` that is added to the result and may be None.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        operator: Callable[..., Tensor] = getattr(torch.ops.sparsewright, name).default
        return run_batched(operator, info.batch_size, in_dims, args, bias=bias), 0

    torch.library.register_vmap(f"sparsewright::{name}", rule, lib=library)


def run_batched(
    run: Callable[..., Tensor], size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...], *, bias: int | None
) -> Tensor:
    """What `run(*args)` gives for each entry of the dimension that `torch.vmap` runs over, in one call if it can.

    Args:
        run: its first argument is `(..., features)`, and so is its result.
        size: of that dimension.
        in_dims: where each argument has it, or None.
        args: whole, with that dimension.
        bias: as `register_batching` has it.

    Returns:
        `(size, ..., features)`.
    """
    if any(dim is not None for place, dim in enumerate(in_dims) if place not in (0, bias)):
        # Weights that differ have nothing to share.
        return torch.stack([run(*_picked(args, in_dims, place)) for place in range(size)])
    given = list(args)
    added = None
    if bias is not None and in_dims[bias] is not None:
        added, given[bias] = given[bias].movedim(in_dims[bias], 0), None
    if in_dims[0] is not None:
        given[0] = given[0].movedim(in_dims[0], 0)
    y = run(*given)
    if in_dims[0] is None:
        y = y.expand(size, *y.shape)
    if added is not None:
        y = y + added.reshape(added.shape[0], *[1] * (y.dim() - 2), added.shape[1])
    return y


def _picked(args: tuple[Any, ...], in_dims: tuple[int | None, ...], place: int) -> list[Any]:
    return [arg if dim is None else arg.select(dim, place) for arg, dim in zip(args, in_dims)]
