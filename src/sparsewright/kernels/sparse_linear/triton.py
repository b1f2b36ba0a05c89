"""Sparse linear on a GPU, in Triton. Imported only when a call needs it: `import sparsewright` never loads Triton.

All kernels read the tensors of the layout `vector` as they are: a packed model that moves to the GPU runs there.

| kernel | a program computes | serves |
| --- | --- | --- |
| `triton_few_tokens` | 16 outputs of one token, over a share of the columns | up to 4 tokens: weights stream once |
| `triton_tensor_core` | 16 to 64 tokens x one row group with `tl.dot`, x gathered | 16-bit x and values alike |
| `triton_lanes` | 128 tokens x one row group, x token-minor, weights broadcast | everything else |

Gradients are in `triton_backward`. Sums are float32, in an order that depends on neither the run nor the place in the
batch; nothing is atomic. Triton's interpreter (`TRITON_INTERPRET=1` before the first import of triton) runs the same
kernels on CPU tensors.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core import KernelError
from ...layouts.vector import block_columns
from .candidates import TRITON
from .dispatch import choose_triton
from .no_kernel import no_kernel

_ROWS = 16  # outputs of a program; tl.dot needs 16 at least
LANES = 128  # tokens of a program
_JOINED = 256  # sums that a program joins
_ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2}
# Programs that keep every multiprocessor busy while a few wait for memory.
_PROGRAMS_PER_PROCESSOR = 4
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Products and sums in one rounding; said outright, because Triton is about to change what it does unasked.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def _finish(sums, bias, row, inside, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr):
    """Add the bias of the rows (broadcast to the sums) and apply the activation."""
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == 1:
        sums = tl.maximum(sums, 0.0)
    if ACTIVATION == 2:
        sums = 0.5 * sums * (1.0 + tl.erf(sums * 0.7071067811865476))
    return sums


@triton.jit
def _few_tokens(
    x,
    values,
    index,
    pointers,
    bias,
    y,
    in_,
    out,
    groups,
    blocks,
    columns,
    splits,
    GROUP: tl.constexpr,
    SHARING: tl.constexpr,
    KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y `(splits, tokens, out)`: SHARING row groups of one token, over the blocks of one split."""
    group = tl.program_id(0) * SHARING + tl.arange(0, SHARING)
    split, token = tl.program_id(1), tl.program_id(2).to(tl.int64)
    lane, lane_row = tl.arange(0, KEPT), tl.arange(0, GROUP)
    sums = tl.zeros((KEPT, SHARING, GROUP), dtype=tl.float32)
    for block in range(split, blocks, splits):
        at = pointers + block * (groups + 1) + group
        begin = tl.load(at, mask=group < groups, other=0)
        end = tl.load(at + 1, mask=group < groups, other=0)
        for first in range(0, tl.max(end - begin, axis=0), KEPT):
            kept = begin[None, :] + first + lane[:, None]
            inside = kept < end[None, :]
            column = block * columns + tl.load(index + kept, mask=inside, other=0).to(tl.int32)
            some_x = tl.load(x + token * in_ + column, mask=inside, other=0.0).to(tl.float32)
            weights = tl.load(
                values + kept.to(tl.int64)[:, :, None] * GROUP + lane_row[None, None, :],
                mask=inside[:, :, None],
                other=0.0,
            ).to(tl.float32)
            sums += weights * some_x[:, :, None]
    total = tl.sum(sums, axis=0)
    row = group[:, None] * GROUP + lane_row[None, :]
    total = _finish(total, bias, row, row < out, HAS_BIAS, ACTIVATION)
    tokens = tl.num_programs(2)
    tl.store(y + (split * tokens + token) * out + row, total, mask=row < out)


@triton.jit
def _join_splits(
    parts,
    bias,
    y,
    size,
    out,
    splits,
    LANES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y `(size,)` from parts `(splits, size)`, added in order; `size` = tokens * out."""
    place = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = place < size
    sums = tl.zeros((LANES,), dtype=tl.float32)
    for split in range(splits):
        sums += tl.load(parts + split * size + place, mask=inside, other=0.0)
    tl.store(y + place, _finish(sums, bias, place % out, inside, HAS_BIAS, ACTIVATION), mask=inside)


@triton.jit
def _tensor_core(
    x,
    values,
    index,
    pointers,
    bias,
    y,
    tokens,
    in_,
    out,
    groups,
    blocks,
    columns,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    KEPT: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """TOKENS x one row group; rows beyond GROUP fill the tile that tl.dot asks for and are dropped."""
    # Neighbouring programs share their tokens, whose rows of x then come from the cache.
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups
    token = tile.to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    lane, lane_row = tl.arange(0, KEPT), tl.arange(0, ROWS)
    sums = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for block in range(blocks):
        at = pointers + block * (groups + 1) + group
        begin, end = tl.load(at), tl.load(at + 1)
        for first in range(begin, end, KEPT):
            kept = first + lane
            inside = kept < end
            column = block * columns + tl.load(index + kept, mask=inside, other=0).to(tl.int32)
            some_x = tl.load(
                x + token[:, None] * in_ + column[None, :],
                mask=(token < tokens)[:, None] & inside[None, :],
                other=0.0,
            )
            weights = tl.load(
                values + kept.to(tl.int64)[:, None] * GROUP + lane_row[None, :],
                mask=inside[:, None] & (lane_row < GROUP)[None, :],
                other=0.0,
            )
            if WIDE:
                some_x, weights = some_x.to(tl.float32), weights.to(tl.float32)
            sums = tl.dot(some_x, weights, sums)
    row = group * GROUP + lane_row
    inside = (lane_row < GROUP) & (row < out)
    sums = _finish(sums, bias, row[None, :], inside[None, :], HAS_BIAS, ACTIVATION)
    tl.store(y + token[:, None] * out + row[None, :], sums, mask=(token < tokens)[:, None] & inside[None, :])


@triton.jit
def _lanes(
    x,
    values,
    index,
    pointers,
    bias,
    y,
    tokens,
    out,
    groups,
    blocks,
    columns,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """LANES tokens x one row group, x `(in, tokens)`. Sums over KEPT columns stay apart until the end."""
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups
    token = tile.to(tl.int64) * LANES + tl.arange(0, LANES)
    lane, lane_row = tl.arange(0, KEPT), tl.arange(0, GROUP)
    sums = tl.zeros((KEPT, GROUP, LANES), dtype=tl.float32)
    for block in range(blocks):
        at = pointers + block * (groups + 1) + group
        begin, end = tl.load(at), tl.load(at + 1)
        for first in range(begin, end, KEPT):
            kept = first + lane
            inside = kept < end
            column = block * columns + tl.load(index + kept, mask=inside, other=0).to(tl.int64)
            some_x = tl.load(
                x + column[:, None] * tokens + token[None, :],
                mask=inside[:, None] & (token < tokens)[None, :],
                other=0.0,
            ).to(tl.float32)
            weights = tl.load(
                values + kept.to(tl.int64)[:, None] * GROUP + lane_row[None, :], mask=inside[:, None], other=0.0
            ).to(tl.float32)
            sums += weights[:, :, None] * some_x[:, None, :]
    row = group * GROUP + lane_row
    total = _finish(tl.sum(sums, axis=0), bias, row[:, None], (row < out)[:, None], HAS_BIAS, ACTIVATION)
    tl.store(y + token[None, :] * out + row[:, None], total, mask=(row < out)[:, None] & (token < tokens)[None, :])


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


def triton_linear(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    pointers: Tensor,
    bias: Tensor | None,
    out: int,
    activation: str | None = None,
    kernel: str | None = None,
) -> Tensor:
    """`activation(x @ W.T + bias)` for a weight in the layout `vector`.

    Args:
        x: `(..., in)`, float32, float16 or bfloat16, any number of tokens.
        values, index, pointers: tensors of the layout, on the device of x.
        bias: `(out,)`, floating point, or None.
        out: rows of W.
        activation: None, `relu` or `gelu` (the exact one).
        kernel: one of the table above; None chooses by dtypes and tokens.

    Returns:
        `(..., out)` in the dtype of x; sums are float32.

    Raises:
        KernelError: a tensor is on another device or of another dtype, or the kernel cannot serve the call.
    """
    check_operand({"x": x, "values": values}, index, pointers, values.shape[1], out)
    if activation not in _ACTIVATIONS:
        raise KernelError(f"The Triton kernels fuse relu or gelu, got {activation!r}. Apply it to the result.")
    in_, group = x.shape[-1], values.shape[1]
    rows = x.reshape(-1, in_).contiguous()
    tokens = rows.shape[0]
    y = x.new_empty(*x.shape[:-1], out)
    if not tokens:
        return y
    tensors = (values.contiguous(), index.contiguous(), pointers.contiguous())
    blocks, groups = pointers.shape[0], pointers.shape[1] - 1
    density = index.numel() / (groups * in_)
    chosen = kernel or choose_triton(group, tokens, in_, density, x.dtype, values.dtype)
    against = {known.name: known.why_not_call(x.dtype, values.dtype, tokens) for known in TRITON}
    if against.get(chosen, ["there is no such kernel"]):
        raise no_kernel({chosen: against.get(chosen, ["there is no such kernel"])})
    sizes = {"out": out, "groups": groups, "blocks": blocks, "columns": block_columns(in_, blocks), "GROUP": group}
    last = {"HAS_BIAS": bias is not None, "ACTIVATION": _ACTIVATIONS[activation], **OPTIONS}
    given = rows if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        if chosen == "triton_few_tokens":
            _run_few_tokens(rows, tensors, given, y, sizes, last)
        elif chosen == "triton_tensor_core":
            size = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
            tile = {"ROWS": max(_ROWS, group), "TOKENS": size, "KEPT": 32}
            # Triton's interpreter multiplies the bits of bfloat16 as integers. In float32, products are exact as well.
            wide = {"WIDE": interpreting()}
            grid = (groups * triton.cdiv(tokens, size),)
            _tensor_core[grid](rows, *tensors, given, y, tokens, in_, **sizes, **tile, **wide, **last)
        else:
            tile = {"LANES": LANES, "KEPT": max(4, _ROWS // group)}
            grid = (groups * triton.cdiv(tokens, LANES),)
            _lanes[grid](rows.t().contiguous(), *tensors, given, y, tokens, **sizes, **tile, **last)
    return y


def _run_few_tokens(
    rows: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    bias: Tensor,
    y: Tensor,
    sizes: dict[str, int],
    last: dict[str, Any],
) -> None:
    tokens, in_ = rows.shape
    sharing = max(1, _ROWS // sizes["GROUP"])
    programs = triton.cdiv(sizes["groups"], sharing)
    # By the weight alone, so that the batch does not change the order of the sums.
    splits = max(1, min(sizes["blocks"], _processors(rows) * _PROGRAMS_PER_PROCESSOR // programs))
    parts = y if splits == 1 else torch.empty(splits, tokens, sizes["out"], dtype=torch.float32, device=y.device)
    tile = {"SHARING": sharing, "KEPT": 64}
    now = last if splits == 1 else {**last, "HAS_BIAS": False, "ACTIVATION": 0}
    _few_tokens[(programs, splits, tokens)](rows, *tensors, bias, parts, in_, **sizes, splits=splits, **tile, **now)
    if splits > 1:
        size = tokens * sizes["out"]
        grid = (triton.cdiv(size, _JOINED),)
        _join_splits[grid](parts, bias, y, size, sizes["out"], splits, LANES=_JOINED, **last)


def _processors(tensor: Tensor) -> int:
    if tensor.is_cuda:
        return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)
    return 2


def check_operand(floats: dict[str, Tensor], index: Tensor, pointers: Tensor, group: int, out: int) -> None:
    """Raise KernelError unless the tensors lie on one device that Triton runs on and make an operand of `out` rows.

    Args:
        floats: name -> x, gradients, values; the first one says which device.
        index, pointers, group: of the layout `vector`.
        out: rows of the weight.
    """
    wanted = "cpu" if interpreting() else "cuda"
    leader, first = next(iter(floats.items()))
    for name, tensor in {**floats, "index": index, "pointers": pointers}.items():
        if tensor.device != first.device or tensor.device.type != wanted:
            raise KernelError(
                f"The Triton kernels take all tensors on one {wanted} device, got {leader} on {first.device} and "
                f"{name} on {tensor.device}. Move the model and its inputs to one device."
            )
    for name, tensor in floats.items():
        if tensor.dtype not in FLOATS:
            raise KernelError(
                f"The Triton kernels take float32, float16 and bfloat16, got {name} of {tensor.dtype}. Cast it."
            )
    groups, kept = pointers.shape[1] - 1, floats.get("values", index).shape[0]
    if groups * group < out or (groups - 1) * group >= out or index.numel() != kept:
        raise KernelError(
            f"The operand has {groups} groups of {group} rows and {index.numel()} kept columns for {kept} rows of "
            f"values; it is not the operand of {out} outputs."
        )
