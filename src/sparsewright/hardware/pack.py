"""`pack_`: masked layers turn into the packed layouts that win on a target; the others stay masked, with the reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import layouts
from ..core import (
    Dense,
    KernelError,
    LayerPlan,
    ModelError,
    Plan,
    PlanError,
    ProfileError,
    ValueType,
    is_whole,
    require_plan,
    suggest,
)
from ..models import MASK, LayerRef, drop_mask, layers
from ..nn import SparseTensor, as_parameter
from .calibrate import apply_calibration_once
from .convolution_time import ConvolutionTimer
from .operands import TORCH_DTYPES
from .target import AbstractTarget, load_target
from .this import ThisTarget


@final
@dataclass(frozen=True)
class PackedLayer:
    """What became of one layer.

    Attributes:
        name: module name.
        shape: `(out, in)`.
        pattern: text.
        layout: layout name, or empty where it stays as it is.
        value_dtype: how the kept values are stored.
        packed: whether the layer changed its form.
        ratio: seconds / dense seconds on the target, mean over the tokens; None where nobody asked the target.
        size_bytes: bytes of the operand in memory.
        reason: why it stays as it is; empty if packed.
    """

    name: str
    shape: tuple[int, int]
    pattern: str
    layout: str
    value_dtype: ValueType
    packed: bool
    ratio: float | None
    size_bytes: int
    reason: str = ""


def pack_(
    model: nn.Module,
    target: str | AbstractTarget = "this",
    *,
    tokens: int | Sequence[int] = (64, 1024),
    plan: Plan | None = None,
    value_dtype: ValueType | None = None,
    force: bool = False,
    batch: Any = None,
) -> list[PackedLayer]:
    """Replace the weight of every masked layer by its packed form where that is faster than dense, in place.

    Args:
        model: after `sparsify_`: zeros in `weight`, and `weight_mask` beside it. Packed layers lose their mask.
        target: name, profile file or target that says what wins.
        tokens: rows of input that the layers will see, of a convolution its output pixels; several are averaged. A
            convolution is judged by the linear layer of its shape `(out, channels * kh * kw)` at as many tokens, unless
            there is a `batch`.
        plan: pattern, layout and value type of each layer (a pattern whose tiles the layer's end cuts off is packed as
            what is read off the mask, mostly a density); without it the pattern is the one that `sparsify_`
            remembered beside the mask, while it keeps just what the mask keeps, else it is read off the mask
            (`layouts.infer_pattern`). A layout that holds values of one type decides the type.
        value_dtype: of all layers, over the plan's. `int8` rounds inputs too where rows share their choice (layout
            `int8`); where each row chooses alone, inputs stay float32 (layout `int8_weights`).
        force: pack without asking the target (for size, or because the target is known).
        batch: an input of the model (a mapping, a tuple or a tensor). With it, and `this` machine as the target, every
            convolution is timed as it will run, on the inputs that the model gives it.

    Returns:
        One row per masked layer, in the order of the model.

    Raises:
        ModelError: nothing is masked, dropped weights are not zero any more, or a masked weight has an adapter.
        PlanError: the plan's pattern does not hold for a layer's mask, `plan` is no plan, or `tokens` counts no rows.
    """
    require_plan(plan)
    counts = _token_counts(tokens)
    apply_calibration_once()
    machine = None if force else load_target(target)
    planned = plan.layers if plan is not None else {}
    if value_dtype is not None and value_dtype not in tuple(TORCH_DTYPES):
        raise PlanError(f"There are no {value_dtype!r} values. {suggest(str(value_dtype), TORCH_DTYPES)}")
    _require_merged(model)
    refs = layers(model)
    known = [ref.name for ref in refs]
    strange = next((name for name in planned if name not in known), None)
    if strange is not None:
        raise PlanError(f"The plan names {strange!r}, which this model does not have. {suggest(strange, known)}")
    holders = Counter(id(ref.module._parameters.get("weight")) for ref in refs)
    work = []
    for ref in refs:
        layer = planned.get(ref.name)
        mask = ref.get_mask() if ref.shape != (0, 0) else None
        if mask is not None and holders[id(ref.module._parameters.get("weight"))] == 1:
            # A weight that several layers hold may be masked by each in its own way.
            ref.require_zeros()
        if mask is not None or (layer is not None and layer.is_dense and layer.value_dtype == "int8"):
            work.append((ref, mask, _with_pattern(ref, mask, layer, value_dtype)))
    if not work:
        raise ModelError("No layer of this model is masked, so there is nothing to pack. Call sparsify_ first.")
    if machine is not None:
        asked = [(ref.shape, layer) for ref, _, layer in work if _can_pack(ref, layer)]
        if batch is not None and isinstance(machine, ThisTarget):
            asked = [(ref.shape, layer) for ref, _, layer in work if _can_pack(ref, layer) and ref.kind != "conv2d"]
        _prepare(machine, asked, counts)
    # All new weights first, so that an error leaves the model as it was.
    timer = None
    if batch is not None and isinstance(machine, ThisTarget):
        timer = ConvolutionTimer(model, batch, [ref for ref, _, _ in work], machine.threads)
    made = [_make(ref, mask, layer, machine, counts, timer) for ref, mask, layer in work]
    owners: dict[int, tuple[LayerRef, Tensor | None, Replacement]] = {}
    for (ref, mask, _), (_, replacement) in zip(work, made):
        # Layers that shared one weight, seen and masked alike, go on sharing it.
        first = owners.setdefault(id(ref.module._parameters["weight"]), (ref, mask, replacement))
        same = first[0].kind == ref.kind and _same_mask(first[1], mask) and first[2] is not None
        _install(ref, first[2] if same else replacement)
    return [row for row, _ in made]


def _require_merged(model: nn.Module) -> None:
    """A weight that is computed anew in every forward has nothing to pack."""
    for name, module in model.named_modules():
        if module._buffers.get(MASK) is not None and parametrize.is_parametrized(module, "weight"):
            raise ModelError(
                f"pack_ packs stored weights, and that of {name or 'the model'} is computed from adapters or another "
                "parametrisation. Call merge_lora_ first (or torch's remove_parametrizations)."
            )


def _token_counts(tokens: Any) -> list[int]:
    counts = list(tokens) if isinstance(tokens, Sequence) and not isinstance(tokens, str) else [tokens]
    if not counts or not all(is_whole(count, 1) for count in counts):
        raise PlanError(
            "Tokens are the rows of input that the layers will see, one whole number of 1 or more or several of them, "
            f"got {tokens!r:.80}. Pass for instance tokens=(64, 1024)."
        )
    return [int(count) for count in counts]


def _same_mask(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _with_pattern(
    ref: LayerRef, mask: Tensor | None, layer: LayerPlan | None, value_dtype: ValueType | None
) -> LayerPlan:
    if layer is None:
        layer = LayerPlan(ref.get_pattern() or Dense())
    elif mask is not None and layer.pattern.obeyed_by(mask) is None:
        raise PlanError(
            f"The plan gives {ref.name} the pattern {layer.pattern}, but its mask breaks it: "
            f"{layer.pattern.check_mask(mask)[0]}. "
            "Pack with the plan the model was sparsified with, or without a plan."
        )
    if mask is not None and layer.pattern.cuts(ref.shape):
        # No form stores tiles that are cut off; what the mask keeps is stored without the rule.
        layer = replace(layer, pattern=layouts.infer_pattern(mask))
    if value_dtype is None and layer.layout != "auto":
        held = layouts.layouts.get(layer.layout).value_dtypes
        value_dtype = next((name for name, dtype in TORCH_DTYPES.items() if held == (dtype,)), None)
    if value_dtype is None or (mask is None and layer.value_dtype == "int8"):
        return layer
    return replace(layer, value_dtype=value_dtype)


def _prepare(machine: AbstractTarget, wanted: list[tuple[tuple[int, int], LayerPlan]], tokens: list[int]) -> None:
    for value_dtype in dict.fromkeys(layer.value_dtype for _, layer in wanted):
        these = [(shape, layer.pattern) for shape, layer in wanted if layer.value_dtype == value_dtype]
        for shape in dict.fromkeys(shape for shape, _ in these):
            patterns = list(dict.fromkeys(pattern for other, pattern in these if other == shape))
            machine.prepare([shape], patterns, tokens, [value_dtype])


Replacement = SparseTensor | None


def _make(
    ref: LayerRef,
    mask: Tensor | None,
    layer: LayerPlan,
    machine: AbstractTarget | None,
    tokens: list[int],
    timer: ConvolutionTimer | None,
) -> tuple[PackedLayer, Replacement]:
    ratio: float | None = None
    if mask is not None and layer.is_dense:
        return _kept(ref, layer, None, "the plan leaves it dense, but its weight is masked"), None
    if not ref.runs_packed:
        return _kept(ref, layer, None, f"no packed kernel for {ref.kind} layers in this release: mask only"), None
    if layer.value_dtype not in ref.view.value_types:
        taken = " or ".join(ref.view.value_types)
        return _kept(
            ref, layer, None, f"{ref.kind} layers have no kernel for {layer.value_dtype} values: ask for {taken}"
        ), None
    reasons = machine.can_run(layer.pattern, ref.shape) if machine is not None else layer.pattern.why_not(ref.shape)
    if reasons:
        return _kept(ref, layer, None, "; ".join(reasons)), None
    weight = ref.get_weight()
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    if timer is not None and ref.kind == "conv2d":
        packed = layouts.pack(weight, kept, layer.layout, layer.pattern, TORCH_DTYPES[layer.value_dtype])
        ratio = timer.ratio(ref, packed)
        if ratio is None:
            return _kept(ref, layer, None, "the batch never reaches it, so it could not be timed"), None
        if ratio >= 1.0:
            return _kept(ref, layer, ratio, f"dense is faster on its inputs here: {1 / ratio:.2f}x"), None
    elif machine is not None:
        try:
            ratios = [_ratio(machine, ref.shape, layer, count) for count in tokens]
        except (KernelError, ProfileError) as error:
            return _kept(ref, layer, None, str(error)), None
        ratio = sum(ratios) / len(ratios)
        if ratio >= 1.0:
            return _kept(ref, layer, ratio, f"dense is faster here: {1 / ratio:.2f}x at {tokens} tokens"), None
    packed = layouts.pack(weight, kept, layer.layout, layer.pattern, TORCH_DTYPES[layer.value_dtype])
    row = PackedLayer(
        ref.name, ref.shape, str(layer.pattern), packed.layout, layer.value_dtype, True, ratio, packed.size_bytes
    )
    seen = weight.dtype if weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
    return row, as_parameter(ref.as_tensor(packed, seen))


def _ratio(machine: AbstractTarget, shape: tuple[int, int], layer: LayerPlan, tokens: int) -> float:
    """Seconds of a layer / dense seconds on the target, in the layout that it will be packed in."""
    pattern, kind = layer.pattern, layer.value_dtype
    if layer.layout == "auto" or layer.layout == layouts.choose_layout(pattern, shape, TORCH_DTYPES[kind]):
        return machine.layer_cost(shape, pattern, tokens, kind).ratio
    if isinstance(machine, ThisTarget):
        return machine.layout_ratio(shape, pattern, tokens, kind, layer.layout)
    raise ProfileError(
        f"the target knows {pattern} with {kind} values in the best layout only, the plan asks for {layer.layout!r}; "
        "leave the layout out, or pack with force=True"
    )


def _can_pack(ref: LayerRef, layer: LayerPlan) -> bool:
    return ref.runs_packed and layer.value_dtype in ref.view.value_types


def _kept(ref: LayerRef, layer: LayerPlan, ratio: float | None, reason: str) -> PackedLayer:
    size = 4 * ref.shape[0] * ref.shape[1]
    return PackedLayer(ref.name, ref.shape, str(layer.pattern), "", layer.value_dtype, False, ratio, size, reason)


def _install(ref: LayerRef, replacement: Replacement) -> None:
    if replacement is not None:
        ref.module._parameters["weight"] = replacement  # type: ignore[assignment]
        drop_mask(ref.module)
