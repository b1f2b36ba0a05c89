"""A low-rank and a sparse part: `W = A B + S`, all of it trainable (ROSA, arXiv:2401.04679).

Packing alternates two exact steps: the best A B for what S leaves, and the largest entries for what A B leaves.
"""

import torch
from torch.nn import functional

import sparsewright as sw
from sparsewright.layouts import AbstractPlainLayout, PackedWeight, layouts
from sparsewright.nn import AbstractLinear, GlobalFraction, PackedLinear, register_operator

RANK, SPARSE, ROUNDS = 16, GlobalFraction(0.05), 8


@layouts.register("low_rank_plus_sparse")
class LowRankPlusSparse(AbstractPlainLayout):
    """Tensors: `left` `(out, rank)`, `right` `(rank, in)`, and `values`, `rows`, `columns` of the sparse part."""

    def why_not(self, pattern, shape):
        return [] if str(pattern) == "dense" else ["it holds dense weights: its own parts are what is small"]

    def pack(self, weight, mask, pattern, value_dtype):
        sparse = torch.zeros_like(weight)
        for _ in range(ROUNDS):
            u, s, v = torch.linalg.svd(weight - sparse, full_matrices=False)
            left, right = u[:, :RANK] * s[:RANK].sqrt(), s[:RANK].sqrt()[:, None] * v[:RANK]
            keep = SPARSE.keep(weight - left @ right)
            sparse = torch.where(keep, weight - left @ right, 0)
        rows, columns = keep.nonzero(as_tuple=True)
        values = {"left": left.contiguous(), "right": right.contiguous(), "values": sparse[keep]}
        tensors = {name: tensor.to(value_dtype) for name, tensor in values.items()}
        tensors |= {"rows": rows.to(torch.int32), "columns": columns.to(torch.int32)}
        return PackedWeight("low_rank_plus_sparse", pattern, weight.shape, value_dtype, tensors)

    def unpack(self, packed):
        left, right, values, rows, columns = packed.tensors.values()
        return (left @ right).index_put((rows.long(), columns.long()), values, accumulate=True)


@register_operator("low_rank_plus_sparse")
class LowRankPlusSparseLinear(AbstractLinear):
    """Two thin products and a scatter; the backward never makes a dense `(out, in)` gradient."""

    layout = "low_rank_plus_sparse"

    def forward(self, x, packed, bias):
        left, right, values, rows, columns = packed.tensors.values()
        y = functional.linear(functional.linear(x, right), left, bias)
        return y.index_add(-1, rows, x[..., columns] * values)

    def backward(self, grad, x, packed):
        left, right, values, rows, columns = packed.tensors.values()
        grad_x = ((grad @ left) @ right).index_add(-1, columns, grad[..., rows] * values)
        flat_grad, flat_x = grad.flatten(0, -2), x.flatten(0, -2)
        of_left = flat_grad.T @ (flat_x @ right.T)
        of_right = (flat_grad @ left).T @ flat_x
        of_values = (flat_grad[:, rows] * flat_x[:, columns]).sum(0)
        return grad_x, {"left": of_left, "right": of_right, "values": of_values}


torch.manual_seed(0)
# A weight of the kind that fine-tuning leaves: a few strong directions, a few strong entries, and noise.
weight = torch.randn(256, 16) @ torch.randn(16, 384) / 4 + 0.1 * torch.randn(256, 384)
weight = weight + 3 * torch.randn_like(weight) * (torch.rand_like(weight) < 0.03)
packed = sw.pack(weight, torch.ones_like(weight, dtype=torch.bool), "low_rank_plus_sparse", "dense")
print(f"bytes: {packed.size_bytes} of {4 * weight.numel()}")
print(f"error of the weight: {(packed.unpack() - weight).norm() / weight.norm():.3f}")

x = torch.randn(128, 384)
target = functional.linear(x, weight + 0.3 * torch.randn(256, 1) @ torch.randn(1, 384))
layer = PackedLinear(packed, torch.zeros(256), trainable=["left", "right", "values"])
optimizer = torch.optim.AdamW(layer.parameters(), lr=2e-2)
losses = []
for _ in range(60):
    optimizer.zero_grad()
    loss = functional.mse_loss(layer(x), target)
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))
print(f"loss on a changed task: {losses[0]:.3f} -> {losses[-1]:.3f}")
