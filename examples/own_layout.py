"""A layout, a sparsifier and an operator of your own, forward and backward, under torch.compile."""

import torch

import sparsewright as sw
from sparsewright.layouts import AbstractPlainLayout, PackedWeight, layouts
from sparsewright.nn import AbstractLinear, AbstractTensorSparsifier, PackedLinear, SparseFormat, register_operator


@layouts.register("triplets")
class Triplets(AbstractPlainLayout):
    def pack(self, weight, mask, pattern, value_dtype):
        rows, columns = mask.nonzero(as_tuple=True)
        tensors = {"values": weight[mask].to(value_dtype), "rows": rows, "columns": columns}
        return PackedWeight("triplets", pattern, tuple(weight.shape), value_dtype, tensors)

    def unpack(self, packed):
        values, rows, columns = packed.tensors.values()
        return values.new_zeros(packed.shape).index_put((rows, columns), values)


class AboveMean(AbstractTensorSparsifier):
    def keep(self, tensor):
        return tensor.abs() > tensor.abs().mean()


@register_operator("triplets")
class TripletsLinear(AbstractLinear):
    layout = "triplets"

    def forward(self, x, packed, bias):
        values, rows, columns = packed.tensors.values()
        y = x.new_zeros(*x.shape[:-1], packed.shape[0]).index_add(-1, rows, x[..., columns] * values)
        return y if bias is None else y + bias

    def backward(self, grad, x, packed):
        values, rows, columns = packed.tensors.values()
        grad_x = torch.zeros_like(x).index_add(-1, columns, grad[..., rows] * values)
        return grad_x, {"values": (grad[..., rows] * x[..., columns]).flatten(0, -2).sum(0)}


layer = torch.nn.Linear(64, 32).requires_grad_(False)
sw.mark_(layer, weights={"weight": SparseFormat(external=AboveMean(), final="triplets")})
trained = PackedLinear(layer.weight.packed, layer.bias, trainable=["values"])
torch.compile(trained, fullgraph=True)(torch.randn(8, 64)).square().sum().backward()
print(layer.weight, "gradient of", trained.packed_values.grad.numel(), "values")
