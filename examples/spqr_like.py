"""A low-bit base and a few exact outliers: the idea of SpQR (arXiv:2306.03078).

Three-bit codes in small groups, with scales and zero points that are quantised themselves, hold almost every weight;
the weights that would lose most are kept in 16 bits beside them, and can be trained.
"""

import torch
from torch import Tensor
from torch.nn import functional

import sparsewright as sw
from sparsewright.layouts import AbstractPlainLayout, PackedWeight, layouts
from sparsewright.nn import AbstractLinear, GlobalFraction, PackedLinear, register_operator

GROUP, LEVELS = 16, 7  # weights that share a scale; largest code of three bits
OUTLIERS = GlobalFraction(0.02)


def in_bytes(codes: Tensor) -> Tensor:
    """`(n, 8)` codes of three bits in `(n, 3)` bytes."""
    words = (codes.long() << 3 * torch.arange(8)).sum(-1)
    return torch.stack([words >> 8 * byte & 255 for byte in range(3)], -1).to(torch.uint8)


def from_bytes(stored: Tensor) -> Tensor:
    """The reverse of `in_bytes`."""
    words = (stored.long() << 8 * torch.arange(3)).sum(-1, keepdim=True)
    return words >> 3 * torch.arange(8) & 7


def in_steps(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Scales or zero points in 255 steps per row: uint8 `(out, groups)`, float16 `(out, 2)` least and step."""
    least, most = numbers.amin(1, keepdim=True).half(), numbers.amax(1, keepdim=True)
    step = ((most - least.float()) / 255).clamp_min(1e-6).half()
    codes = ((numbers - least.float()) / step.float()).round().clamp(0, 255)
    return codes.to(torch.uint8), torch.cat([least, step], 1)


def from_steps(codes: Tensor, line: Tensor) -> Tensor:
    """The reverse of `in_steps`."""
    least, step = line.float().split(1, 1)
    return codes.float() * step + least


def base(tensors) -> Tensor:
    """The low-bit part, `(out, in)` float32."""
    scales = from_steps(tensors["scales"], tensors["scale_line"])
    zeros = from_steps(tensors["zeros"], tensors["zero_line"])
    codes = from_bytes(tensors["codes"]).view(*scales.shape, GROUP)
    return (codes * scales[..., None] + zeros[..., None]).flatten(1)


@layouts.register("spqr_like")
class SpqrLike(AbstractPlainLayout):
    """Tensors: `codes`, `scales`, `zeros`, their lines, and the outliers' `values`, `rows`, `columns`."""

    def why_not(self, pattern, shape):
        good = str(pattern) == "dense" and shape[1] % GROUP == 0
        return [] if good else [f"it holds dense weights with a multiple of {GROUP} inputs"]

    def pack(self, weight, mask, pattern, value_dtype):
        # What lies far from its group's middle would stretch the group's grid: it is kept beside it.
        groups = weight.unflatten(1, (-1, GROUP))
        outliers = OUTLIERS.keep((groups - groups.median(-1, keepdim=True).values).flatten(1))
        tensors = self.quantised(weight, outliers)
        rows, columns = outliers.nonzero(as_tuple=True)
        values = (weight - base(tensors))[outliers].to(value_dtype)
        sparse = {"values": values, "rows": rows.to(torch.int16), "columns": columns.to(torch.int16)}
        return PackedWeight("spqr_like", pattern, weight.shape, value_dtype, {**tensors, **sparse})

    def quantised(self, weight, left_out):
        groups = weight.unflatten(1, (-1, GROUP))
        inside = ~left_out.unflatten(1, (-1, GROUP))
        least = torch.where(inside, groups, torch.inf).amin(-1).nan_to_num(posinf=0.0)
        most = torch.where(inside, groups, -torch.inf).amax(-1).nan_to_num(neginf=0.0)
        scales, scale_line = in_steps((most - least) / LEVELS)
        zeros, zero_line = in_steps(least)
        step = from_steps(scales, scale_line).clamp_min(1e-6)[..., None]
        codes = ((groups - from_steps(zeros, zero_line)[..., None]) / step).round().clamp(0, LEVELS)
        held = {"scales": scales, "scale_line": scale_line, "zeros": zeros, "zero_line": zero_line}
        return {"codes": in_bytes(codes.reshape(-1, 8)), **held}

    def unpack(self, packed):
        of = packed.tensors
        places = (of["rows"].long(), of["columns"].long())
        return base(of).to(packed.value_dtype).index_put(places, of["values"], accumulate=True)


@register_operator("spqr_like")
class SpqrLikeLinear(AbstractLinear):
    """The base densely, the outliers by their places."""

    layout = "spqr_like"

    def forward(self, x, packed, bias):
        of = packed.tensors
        parts = x[..., of["columns"].long()] * of["values"].to(x.dtype)
        y = functional.linear(x, base(of).to(x.dtype), bias)
        return y.index_add(-1, of["rows"].long(), parts)


torch.manual_seed(0)
weight, x = torch.randn(256, 512), torch.randn(64, 512)
weight[torch.rand_like(weight) < 0.01] *= 8  # the heavy tail of a language model
packed = sw.pack(weight, torch.ones_like(weight, dtype=torch.bool), "spqr_like", "dense", torch.float16)
expected = functional.linear(x, weight)
error = (sw.linear(x, packed) - expected).norm() / expected.norm()
plain = base(SpqrLike().quantised(weight, torch.zeros_like(weight, dtype=torch.bool)))
without = (functional.linear(x, plain) - expected).norm() / expected.norm()
print(
    f"bits per weight {8 * packed.size_bytes / weight.numel():.2f}; error {error:.3f}, without outliers {without:.3f}"
)

layer = PackedLinear(packed, trainable=["values"])
optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, eps=1e-4)  # the values have 16 bits
for _ in range(20):
    optimizer.zero_grad()
    loss = (layer(x) - expected).square().mean()
    loss.backward()
    optimizer.step()
print(f"error after 20 steps on the outliers {(layer(x) - expected).norm() / expected.norm():.3f}")
