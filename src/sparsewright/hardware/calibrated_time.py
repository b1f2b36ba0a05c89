"""Bring a model's times in line with one packed copy of it, timed end to end.

Layers timed one by one do not see everything: a packed model leaves more of the cache to what lies between its layers
than the dense one does, and hooks cost time. Packing a copy under one pattern and timing it beside the dense model
tells how much is really saved where so much was expected; the layers' share is scaled by half of that factor.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..core import AbstractPattern, Plan, ValueType, parse_pattern
from ..models import eval_mode, layers
from ..solvers import solve_mask
from .model_time import ModelTime, fitted, run_model
from .pack import pack_
from .target import AbstractTarget
from .timing import interleave, speedup

# A factor further off is no cache effect but a disturbed measurement.
_FACTORS = (0.8, 1.3)


def calibrated(
    times: Mapping[str, ModelTime],
    model: nn.Module,
    inputs: Mapping[str, Any],
    target: AbstractTarget,
    pattern: AbstractPattern | str = "4x1@50%",
    value_dtype: ValueType = "fp32",
    *,
    threads: int = 1,
    rounds: tuple[int, int] = (7, 40),
    seconds: float = 6.0,
) -> dict[str, ModelTime]:
    """Scale the layers' share so that the packed copy is predicted half way to what was measured.

    Args:
        times: batch label -> the dense model timed at that batch, on this machine.
        model: dense; a copy is packed.
        inputs: batch label -> the input it was timed with.
        target: this machine's target, which knows the pattern at the layers' shapes.
        pattern, value_dtype: what the copy is packed under, in every layer that takes it.
        threads: intra-op threads.
        rounds, seconds: of timing, per batch.

    Returns:
        The same with scaled layers; total times stay. Where no layer takes the pattern, all stays as it is.
    """
    rule = parse_pattern(pattern)
    packs = {ref.name for ref in layers(model) if ref.runs_packed and value_dtype in ref.view.value_types}
    timed = next(iter(times.values())).layers
    names = [name for name, layer in timed.items() if name in packs and not target.can_run(rule, layer.shape)]
    packed = _packed_copy(model, names, rule, value_dtype)
    if packed is None:
        return dict(times)
    found = {}
    with eval_mode(model):
        for label, time in times.items():
            dense_call, packed_call = _calls(model, packed, inputs[label])
            samples = interleave(
                {"dense": dense_call, "packed": packed_call}, threads=threads, rounds=rounds, seconds=seconds, warm=1
            )
            measured = 1.0 - 1.0 / speedup(samples["packed"], samples["dense"]).value
            found[label] = _scaled(time, names, rule, value_dtype, target, measured)
    return found


def _calls(dense: nn.Module, packed: nn.Module, batch: Any) -> tuple[Any, Any]:
    return (lambda: run_model(dense, batch)), (lambda: run_model(packed, batch))


def _packed_copy(
    model: nn.Module, names: list[str], pattern: AbstractPattern, value_dtype: ValueType
) -> nn.Module | None:
    packed = copy.deepcopy(model).eval()
    refs = [ref for ref in layers(packed) if ref.name in names and ref.runs_packed]
    if not refs:
        return None
    for ref in refs:
        weight = ref.get_weight()
        ref.set_weight(weight.clone(), solve_mask(weight.float().abs().contiguous(), pattern))
    pack_(packed, plan=Plan.uniform([ref.name for ref in refs], pattern, value_dtype), force=True)
    return packed


def _scaled(
    time: ModelTime,
    names: list[str],
    pattern: AbstractPattern,
    value_dtype: ValueType,
    target: AbstractTarget,
    measured: float,
) -> ModelTime:
    """Layers scaled by measured saving / expected saving, both as shares of the dense model's time."""
    expected = sum(time.layers[name].seconds - time.layer_seconds(target, name, pattern, value_dtype) for name in names)
    if expected <= 0 or measured <= 0:
        return time
    least, most = _FACTORS
    # Half of the correction (on a logarithmic scale): a second process on the same machine finds a factor that differs
    # by about as much as the factor differs from one, so half is where the truth most likely lies.
    factor = min(most, max(least, (measured * time.total_s / expected) ** 0.5))
    scaled = {name: replace(layer, seconds=factor * layer.seconds) for name, layer in time.layers.items()}
    return replace(time, layers=fitted(scaled, time.total_s))
