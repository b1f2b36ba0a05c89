"""`SparseFormat`: how one tensor (a weight, an activation, a gradient) becomes sparse.

The four parts are STen's sparsified-operator contract (arXiv:2304.07613): the operator's result passes the inline
sparsifier, is held in the temporary layout, passes the external sparsifier, and ends in the final layout.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..core import AbstractPattern, LayoutError, PatternError
from ..layouts import layouts, pack
from .sparse_tensor import SparseTensor
from .tensor_sparsifiers import AbstractTensorSparsifier, KeepAll, sparsifier_of

# Layouts of torch itself; every other name is a registered layout of (out, in) matrices.
DENSE, COO = "dense", "coo"
_KEEP_ALL = KeepAll()


@final
@dataclass(frozen=True)
class SparseFormat:
    """What becomes of a tensor, in this order.

    Attributes:
        inline: applied by the operator to each part of its result: streaming or blocking, never materializing. Under
            torch.compile it lies in the operator's graph, where streaming ones are fused into it.
        temporary: layout between the two sparsifiers.
        external: applied to the whole tensor afterwards: any kind.
        final: layout in the end. `dense` is a plain tensor with zeros; `coo` is torch's sparse tensor, of any shape;
            any registered layout gives a `SparseTensor` of a matrix `(rows, columns)`.

    Raises:
        PatternError: the inline sparsifier is materializing.
        RegistryError: a layout is unknown.
    """

    inline: AbstractTensorSparsifier = _KEEP_ALL
    temporary: str = DENSE
    external: AbstractTensorSparsifier = _KEEP_ALL
    final: str = DENSE

    def __post_init__(self) -> None:
        if not self.inline.kind.may_be_inline:
            raise PatternError(
                f"An inline sparsifier sees the operator's result part by part, {self.inline} is "
                f"{self.inline.kind.value}: it needs the whole tensor. Pass it as the external sparsifier."
            )
        for name in (self.temporary, self.final):
            if name not in (DENSE, COO):
                layouts.get(name)

    @property
    def is_traceable(self) -> bool:
        """Whether no packing, whose sizes depend on values, stands in the way of one compiled graph."""
        return self.temporary == DENSE and self.final == DENSE

    def sparsified(self, tensor: Tensor) -> Tensor:
        """Zeros where both sparsifiers drop, without a change of layout; differentiable."""
        return self.external(self.inline(tensor))

    def apply(self, tensor: Tensor) -> Tensor:
        """All four parts.

        Args:
            tensor: dense, floating point.

        Returns:
            A plain tensor for `dense`, torch's COO for `coo`, else a `SparseTensor`; gradients pass where it keeps.

        Raises:
            LayoutError: a layout of matrices is given a tensor of other dimensions, or cannot store what is kept.
        """
        if self.is_traceable:
            return self.sparsified(tensor)
        between = _as_dense(_converted(self.inline(tensor), self.temporary))
        return _converted(self.external(between), self.final)


def format_of(asked: "SparseFormat | AbstractTensorSparsifier | AbstractPattern | str") -> SparseFormat:
    """The format itself; a sparsifier, a pattern or its text stand for zeros in a dense tensor."""
    if isinstance(asked, SparseFormat):
        return asked
    sparsifier = sparsifier_of(asked)
    return SparseFormat(inline=sparsifier) if sparsifier.kind.may_be_inline else SparseFormat(external=sparsifier)


def _converted(tensor: Tensor, layout: str) -> Tensor:
    if layout == DENSE:
        return tensor
    if layout == COO:
        return tensor.to_sparse()
    if tensor.dim() != 2:
        raise LayoutError(
            f"The layout {layout!r} stores matrices (rows, columns), got a tensor of shape {tuple(tensor.shape)}. "
            "Use the final layout 'dense' or 'coo' here."
        )
    packed: Tensor = _Pack.apply(tensor, layout)
    return packed


def _as_dense(tensor: Tensor) -> Tensor:
    if type(tensor) is SparseTensor:
        unpacked: Tensor = _Unpack.apply(tensor)
        return unpacked
    return tensor.to_dense() if tensor.layout == torch.sparse_coo else tensor


class _Pack(torch.autograd.Function):
    """Dense to packed; the gradient passes where something is kept."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, layout: str) -> SparseTensor:
        mask = tensor != 0
        ctx.save_for_backward(mask)
        return SparseTensor(pack(tensor, mask, layout=layout), dtype=tensor.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, grad, 0), None


class _Unpack(torch.autograd.Function):
    """Packed to dense."""

    @staticmethod
    def forward(ctx: Any, tensor: SparseTensor) -> Tensor:
        return tensor.dense()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
