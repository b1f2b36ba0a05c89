"""int4 values, 2 of every 4, one scale per group of inputs: the weight of Sparse-Marlin (arXiv:2408.11743).

A group of four weights takes one byte for its two values and half a byte for their places: 12 bits instead of 128.
"""

import torch
from torch.nn import functional

import sparsewright as sw
from sparsewright.layouts import AbstractPlainLayout, PackedWeight, layouts
from sparsewright.nn import AbstractLinear, register_operator

GROUP = 128  # inputs that share a scale


@layouts.register("marlin_like")
class MarlinLike(AbstractPlainLayout):
    """Tensors: `codes` `(out, in / 4)`, `places` `(out, in / 8)` uint8, `scales` `(out, in / GROUP)` float16."""

    def why_not(self, pattern, shape):
        good = str(pattern) == "2:4" and shape[1] % GROUP == 0
        return [] if good else [f"it holds 2:4 with a multiple of {GROUP} inputs"]

    def pack(self, weight, mask, pattern, value_dtype):
        scales = (weight * mask).unflatten(1, (-1, GROUP)).abs().amax(-1).clamp_min(1e-6).half() / 7
        scales = scales.clamp_min(torch.finfo(torch.float16).tiny)
        # Where a group keeps less than two, zeros fill up.
        places = mask.unflatten(1, (-1, 4)).to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :2]
        kept = (weight * mask).unflatten(1, (-1, 4)).gather(-1, places)
        steps = scales.float().repeat_interleave(GROUP // 4, 1)[..., None]
        codes = (kept / steps).round().clamp(-7, 7).to(torch.uint8) & 15
        halves = (places[..., 0] | places[..., 1] << 2).unflatten(1, (-1, 2)).to(torch.uint8)
        tensors = {"codes": codes[..., 0] | codes[..., 1] << 4, "places": halves[..., 0] | halves[..., 1] << 4}
        return PackedWeight("marlin_like", pattern, weight.shape, value_dtype, {**tensors, "scales": scales})

    def unpack(self, packed):
        codes, places, scales = packed.tensors.values()
        places = torch.stack([places & 15, places >> 4], -1).flatten(1).long()
        kept = torch.stack([codes & 15, codes >> 4], -1).to(torch.int8)
        kept = torch.where(kept > 7, kept - 16, kept) * scales.float().repeat_interleave(GROUP // 4, 1)[..., None]
        dense = kept.new_zeros(*places.shape, 4).scatter(-1, torch.stack([places & 3, places >> 2], -1), kept)
        return dense.flatten(1).to(packed.value_dtype)


@register_operator("marlin_like")
class MarlinLikeLinear(AbstractLinear):
    layout = "marlin_like"

    def forward(self, x, packed, bias):
        return functional.linear(x, packed.unpack().to(x.dtype), bias)


torch.manual_seed(0)
weight, x = torch.randn(512, 1024), torch.randn(64, 1024)
packed = sw.pack(weight, sw.solve_mask(weight.abs(), "2:4"), layout="marlin_like", pattern="2:4")
kept, y = torch.where(sw.solve_mask(weight.abs(), "2:4"), weight, 0), sw.linear(x, packed)
error = (y - x @ kept.T).norm() / (x @ kept.T).norm()
print(f"bytes: {packed.size_bytes} of {4 * weight.numel()}; error of int4 {error:.3f}")
