"""Reconstruction: refit the kept weights of each layer, in run order, to what the dense layer answers.

The best a layer can do with its mask is a least-squares problem: from the inputs it gets *now*, behind sparse layers,
give the outputs that the dense model has *there*. So errors of the layers in front are corrected as well, which
one-shot sparsifiers leave alone. Solved by conjugate gradients on the kept places only. Sources: Meng et al. 2024
(ALPS), arXiv:2406.07831 (the solver); Frantar and Alistarh 2022, arXiv:2208.11580 (dense targets).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ModelError, NumericError
from ..models import LayerRef, batches_of, blocks, layers
from ..models.data import Batch
from ..models.flow import Call, capture, chains
from ..models.modes import quiet

DAMPING = 1e-3
ITERATIONS = 15


@dataclass(frozen=True)
class LayerFit:
    """What reconstruction did for one layer.

    Attributes:
        name: of the layer.
        error_before: squared distance to the dense outputs over their variance, before.
        error_after: the same, after; never larger, on the batches it was fitted to.
    """

    name: str
    error_before: float
    error_after: float


class _StopForwardError(Exception):
    """Ends a forward pass once the wanted input was seen."""


def reconstruct(
    model: nn.Module,
    teacher: nn.Module,
    batches: Any,
    *,
    damping: float = DAMPING,
    iterations: int = ITERATIONS,
) -> list[LayerFit]:
    """Refit the kept weights and the biases of every masked layer inside the model's blocks, in place.

    Most is won back where neighbouring rows share a pattern. Give several times as many tokens as the widest input.

    Args:
        model: sparsified, not yet packed.
        teacher: the dense model with the same layer names; only read.
        batches: unlabelled data, in one of the forms of `models.batches_of`; padding is left out by `attention_mask`.
        damping: pull towards the weight as it is, as a share of the mean of the inputs' second moments.
        iterations: of conjugate gradients; more come closer to the optimum.

    Returns:
        One entry per layer that was refitted, in run order. Masks are as they were; a model without repeated blocks,
        and layers outside them, are left alone.

    Raises:
        ModelError: the teacher lacks a layer of the model.
        NumericError: inputs are NaN or infinite; the message names the layer.
    """
    read = batches_of(batches, model)
    masked = {ref.name: ref for ref in layers(model, mask_only=True) if ref.get_mask() is not None}
    dense = {ref.name: ref for ref in layers(teacher, mask_only=True)}
    for name, ref in masked.items():
        if name not in dense or dense[name].shape != ref.shape:
            raise ModelError(f"The teacher has no layer {name} of shape {ref.shape}. Pass the model as it was before.")
    fits: list[LayerFit] = []
    theirs = dict(blocks(teacher))
    with quiet(model), quiet(teacher):
        for chain in chains(model, blocks(model), read[0]):
            calls = capture(model, chain, read)
            dense_calls = capture(teacher, [(name, theirs[name]) for name, _ in chain], read)
            for place, (name, block) in enumerate(chain):
                pairs = [
                    _Pair(batch, ours[name], other[name])
                    for batch, ours, other in zip(read, calls, dense_calls)
                    if name in ours and name in other
                ]
                inside = {key: ref for key, ref in masked.items() if key.startswith(f"{name}.")}
                for group in _groups(block, inside, pairs[0].ours):
                    fits += _fit_group(group, dense, block, theirs[name], pairs, damping, iterations)
                if place + 1 < len(chain):
                    following = chain[place + 1][0]
                    for ours, other in zip(calls, dense_calls):
                        if name in ours and following in ours:
                            ours[following].hidden = ours.pop(name).run(block)
                            other[following].hidden = other.pop(name).run(theirs[name])
    return fits


@dataclass(frozen=True)
class _Pair:
    """One batch at one block: the call in the sparse model and in the dense one."""

    batch: Batch
    ours: Call
    dense: Call


def _groups(block: nn.Module, inside: Mapping[str, LayerRef], call: Call) -> list[list[LayerRef]]:
    """Layers of a block in run order; those that read the very same tensor (query, key, value) together."""
    order: list[tuple[Tensor, list[LayerRef]]] = []
    with _inputs_seen(inside.values()) as seen:
        call.run(block)
    for ref, inputs in seen:
        if any(ref in group for _, group in order):
            continue  # a layer that is called twice is fitted to its first call
        if order and order[-1][0] is inputs:
            order[-1][1].append(ref)
        else:
            order.append((inputs, [ref]))
    return [group for _, group in order]


@contextmanager
def _inputs_seen(refs: Any) -> Iterator[list[tuple[LayerRef, Tensor]]]:
    """Record which layer was called with which tensor inside the block."""
    seen: list[tuple[LayerRef, Tensor]] = []

    def before(ref: LayerRef) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(inputs, Tensor):
                seen.append((ref, inputs))

        return hook

    handles = [ref.module.register_forward_pre_hook(before(ref), with_kwargs=True) for ref in refs]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _input_rows(block: nn.Module, ref: LayerRef, call: Call, batch: Batch) -> Tensor:
    """What the layer gets in this call, `(tokens, in)` float32, padding left out."""
    caught: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else next(iter(kwargs.values())))
        raise _StopForwardError

    handle = ref.module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        call.run(block)
    except _StopForwardError:
        inputs = caught[0]
    finally:
        handle.remove()
    rows = ref.view.rows(inputs, ref.module)
    mask, leading = batch.token_mask, ref.view.token_shape(inputs)
    if mask is not None and leading is not None and leading in (tuple(mask.shape), (mask.numel(),)):
        rows = rows[mask.reshape(-1)]
    return rows.float()


def _fit_group(
    group: Sequence[LayerRef],
    dense: Mapping[str, LayerRef],
    block: nn.Module,
    dense_block: nn.Module,
    pairs: Sequence[_Pair],
    damping: float,
    iterations: int,
) -> list[LayerFit]:
    """Fit layers that share their input: the moments are collected once, each layer is solved on its own."""
    first, in_ = group[0], group[0].shape[1]
    gram, cross, dense_gram = (torch.zeros(in_, in_, dtype=torch.float64) for _ in range(3))
    mean, dense_mean = (torch.zeros(in_, dtype=torch.float64) for _ in range(2))
    tokens = 0
    for pair in pairs:
        ours = _input_rows(block, first, pair.ours, pair.batch)
        theirs = _input_rows(dense_block, dense[first.name], pair.dense, pair.batch)
        gram += ours.T @ ours
        cross += theirs.T @ ours
        dense_gram += theirs.T @ theirs
        mean += ours.sum(0, dtype=torch.float64)
        dense_mean += theirs.sum(0, dtype=torch.float64)
        tokens += len(ours)
    if not bool(torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise NumericError(
            f"The inputs of {first.name} are not finite in reconstruction. Check weights and data for NaN."
        )
    moments = _Moments(tokens, gram / tokens, cross / tokens, dense_gram / tokens, mean / tokens, dense_mean / tokens)
    return [_fit(ref, dense[ref.name], moments, damping, iterations) for ref in group]


@dataclass(frozen=True)
class _Moments:
    """Second moments per token, `(in, in)` float64: ours, dense against ours, dense; and both means `(in,)`."""

    tokens: int
    gram: Tensor
    cross: Tensor
    dense_gram: Tensor
    mean: Tensor
    dense_mean: Tensor


def _fit(ref: LayerRef, dense: LayerRef, moments: _Moments, damping: float, iterations: int) -> LayerFit:
    """Solve one layer and write weight and bias."""
    mask = ref.get_mask()
    assert mask is not None
    weight, target = ref.get_weight().double(), dense.get_weight().double()
    bias, dense_bias = ref.module._parameters.get("bias"), dense.module._parameters.get("bias")
    gram, cross, dense_gram = moments.gram, moments.cross, moments.dense_gram
    if bias is not None:
        # With a bias of its own the layer need not explain the means: they are taken out here and put into the bias.
        gram = gram - torch.outer(moments.mean, moments.mean)
        cross = cross - torch.outer(moments.dense_mean, moments.mean)
        dense_gram = dense_gram - torch.outer(moments.dense_mean, moments.dense_mean)
    right = target @ cross
    size = float((target @ dense_gram).mul_(target).sum().clamp_min(1e-30))
    pull = damping * float(gram.diagonal().mean())
    fitted = conjugate_gradients(weight, mask, gram, right, pull, iterations)

    def error(candidate: Tensor) -> float:
        return float(((candidate @ gram - 2 * right) * candidate).sum() / size) + 1.0

    before, after = error(weight), error(fitted)
    if after < before:
        ref.set_weight(fitted.to(ref.get_weight().dtype), mask.clone(), ref.remembered_pattern)
        if bias is not None:
            own = dense_bias.double() if dense_bias is not None else torch.zeros_like(bias, dtype=torch.float64)
            bias.copy_(own + target @ moments.dense_mean - ref.get_weight().double() @ moments.mean)
    return LayerFit(ref.name, before, min(before, after))


def conjugate_gradients(
    weight: Tensor, mask: Tensor, gram: Tensor, right: Tensor, pull: float, iterations: int
) -> Tensor:
    """Minimise `tr(V G V^T) - 2 tr(V R^T) + pull |V - W|^2` over the kept places, each output row on its own.

    Args:
        weight: `(out, in)` float64, W: start and centre of the pull.
        mask: `(out, in)` bool, True = kept; V is zero elsewhere.
        gram: `(in, in)` float64, G, positive semi-definite.
        right: `(out, in)` float64, R.
        pull: strength of the damping, at least 0.
        iterations: at most; rows that have converged stand still.

    Returns:
        `(out, in)` float64.
    """
    kept = mask.to(weight.dtype)
    # Scaling by the diagonal: columns of very different size are the rule in transformers.
    scale = 1.0 / (gram.diagonal() + pull).clamp_min(1e-30)
    value = weight * kept
    residual = (right + pull * weight - value @ gram - pull * value) * kept
    scaled = residual * scale
    direction = scaled.clone()
    power = (residual * scaled).sum(1, keepdim=True)
    stop = power.clamp_min(1e-300) * 1e-20
    for _ in range(iterations):
        moved = (direction @ gram + pull * direction) * kept
        curvature = (direction * moved).sum(1, keepdim=True)
        step = torch.where((power > stop) & (curvature > 0), power / curvature.clamp_min(1e-300), 0.0)
        value += step * direction
        residual -= step * moved
        scaled = residual * scale
        following = (residual * scaled).sum(1, keepdim=True)
        direction = scaled + (following / power.clamp_min(1e-300)) * direction
        power = following
    return value
