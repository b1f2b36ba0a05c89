"""2:4 training: the mask is chosen anew on every pass, and both the forward and the backward product are 2:4.

The forward keeps 2 of 4 along the inputs, the gradient of the inputs 2 of 4 along the outputs (Zhang et al. 2023,
arXiv:2302.06058). On CUDA, in 16 bits, torch's sparse tensor cores multiply; elsewhere the zeros are multiplied, and
only the trained weight is packed for the CPU kernels. The gradient reaches every weight, so a dropped one can return.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparsewright as sw
from sparsewright.layouts import AbstractPlainLayout, PackedWeight, layouts, storage_bytes
from sparsewright.nn import AbstractLinear, NOfM, PackedLinear, register_operator

TWO_OF_FOUR = NOfM(2, 4)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` for a weight that is 2:4 along its rows."""
    if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16):
        weight = torch.sparse.to_sparse_semi_structured(weight.contiguous())
    return functional.linear(x, weight)


@layouts.register("two_four_training")
class TwoFourTraining(AbstractPlainLayout):
    """Tensors: `values` `(out, in)`, all of them; what is kept is read off when the weight is used."""

    def pack(self, weight, mask, pattern, value_dtype):
        return PackedWeight("two_four_training", pattern, weight.shape, value_dtype, {"values": weight.to(value_dtype)})

    def unpack(self, packed):
        return TWO_OF_FOUR(packed.tensors["values"])


@register_operator("two_four_training")
class TwoFourLinear(AbstractLinear):
    layout = "two_four_training"

    def forward(self, x, packed, bias):
        y = multiply(x, TWO_OF_FOUR(packed.tensors["values"]))
        return y if bias is None else y + bias

    def backward(self, grad, x, packed):
        grad_x = multiply(grad, TWO_OF_FOUR(packed.tensors["values"].T))
        return grad_x, {"values": grad.flatten(0, -2).T @ x.flatten(0, -2)}


def train(model: nn.Module, steps: int = 150) -> float:
    """Fit noisy clusters; the share of fresh points that are told apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps + 1):
        labels = torch.randint(10, (256,), generator=generator)
        scores = model(centres[labels] + 2.0 * torch.randn(256, 64, generator=generator))
        if step < steps:
            optimizer.zero_grad()
            functional.cross_entropy(scores, labels).backward()
            optimizer.step()
    return float((scores.argmax(-1) == labels).float().mean())


torch.manual_seed(0)
dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
sparse = nn.Sequential(*dense)
for place in (0, 2):
    layer = nn.Linear(dense[place].in_features, 256)
    mask = TWO_OF_FOUR.keep(layer.weight.detach())
    packed = sw.pack(layer.weight, mask, layout="two_four_training", pattern="2:4")
    sparse[place] = PackedLinear(packed, layer.bias, trainable=["values"])
sparse[4] = nn.Linear(256, 10)
print(f"accuracy: dense {train(dense):.3f}, 2:4 {train(sparse):.3f}")

trained = sparse[2].packed.unpack().detach()
final = sw.pack(trained, TWO_OF_FOUR.keep(trained), pattern="2:4")
x = torch.randn(32, 256)
error = float((sw.linear(x, final) - functional.linear(x, trained)).abs().max())
print(f"bytes: dense {4 * trained.numel()}, 2:4 {storage_bytes(final)}; largest error of the CPU kernel {error:.1e}")
