"""The registered operator of each layout: what autograd, torch.compile, torch.export and CUDA take."""

import torch
from torch import Tensor
from torch.nn import functional

from ...core import NMG
from ...layouts import PackedWeight
from . import int8_op, nmg_op  # noqa: F401 (registers the operators)
from .cuda_op import check_cuda_call, check_semi_structured_call
from .dispatch import why_not
from .int8_operand import PLANES
from .no_kernel import no_kernel
from .op import check_call
from .operand import kept_per_8


def registered_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias`; arguments and errors as `linear`."""
    by_layout = {
        "vector": _vector,
        "int8": _int8,
        "int8_weights": _int8_weights,
        "nmg": _nmg,
        "semi_structured": _semi_structured,
        "masked": masked_dense,
    }
    run = by_layout.get(packed.layout)
    if run is None:
        raise no_kernel(why_not(packed, 2), packed)
    return run(x, packed, bias)


def masked_dense(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """torch's own product with a weight that holds its zeros."""
    return functional.linear(x, packed.tensors["values"].to(x.dtype), bias)


def _vector(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    values = packed.tensors["values"]
    if values.is_cuda or x.is_cuda:
        check_cuda_call(x, values, packed.shape[1], packed.shape[0], bias)
    elif values.dtype not in (torch.float32, torch.float16):
        raise no_kernel(why_not(packed, 2), packed)
    else:
        check_call(x, packed.shape[1], packed.shape[0], bias)
    return _product(x, packed, bias)


def _int8_weights(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    check_call(x, packed.shape[1], packed.shape[0], bias)
    y = _product(x, packed, None) * packed.tensors["scale"][: packed.shape[0]]
    return y if bias is None else y + bias


def _product(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    tensors = packed.tensors
    y: Tensor = torch.ops.sparsewright.linear(
        x,
        tensors["values"],
        tensors["index"],
        tensors["pointers"],
        bias,
        packed.shape[0],
        kept_per_8(packed.pattern),
    )
    return y


def _int8(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    check_call(x, packed.shape[1], packed.shape[0], bias)
    y: Tensor = torch.ops.sparsewright.int8_linear(x, *(packed.tensors[name] for name in PLANES), bias, packed.shape[0])
    return y


def _nmg(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    values, index = packed.tensors["values"], packed.tensors["index"]
    on_device = values.device.type in ("cpu", "meta")
    if not isinstance(packed.pattern, NMG) or not on_device or values.dtype not in (torch.float32, torch.float16):
        raise no_kernel(why_not(packed, 2), packed)
    check_call(x, packed.shape[1], packed.shape[0], bias)
    y: Tensor = torch.ops.sparsewright.nmg_linear(x, values, index, bias, packed.shape[0], packed.pattern.m)
    return y


def _semi_structured(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    values, meta = packed.tensors["values"], packed.tensors["meta"]
    if not values.is_cuda:
        raise no_kernel(why_not(packed, 2), packed)
    check_semi_structured_call(x, values, packed.shape[1], packed.shape[0], bias)
    y: Tensor = torch.ops.sparsewright.semi_structured_linear(x, values, meta, bias, packed.shape[0])
    return y
