"""One density over many layers: each gets its share by the scores of its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..core import Dense, PatternError, Plan, Unstructured
from ..solvers import solve_global
from ..sparsifiers import Needs
from .data import Batch
from .layer_ref import LayerRef
from .statistics import layer_statistics


def spread_globally(
    model: nn.Module, plan: Plan, refs: Sequence[LayerRef], batches: Sequence[Batch], needs: Mapping[str, Needs]
) -> Plan:
    """Replace one unstructured density by densities per layer that keep the best scores of the whole model.

    Scores are `|w|`, times the norm of the input where the layer's method uses data. A layer keeps at least one weight.

    Raises:
        PatternError: the plan is not one unstructured density.
    """
    patterns = {plan.layers[ref.name].pattern for ref in refs}
    pattern = next(iter(patterns), None)
    if len(patterns) != 1 or not isinstance(pattern, Unstructured):
        raise PatternError(
            f"scope='global' spreads one unstructured density such as '50%', got {sorted(map(str, patterns))}. "
            "Use scope='layer' for other patterns."
        )
    calibrated = [ref for ref in refs if needs[ref.name] != "none"]
    stats = layer_statistics(model, batches, calibrated, "norm") if calibrated else {}
    scores: dict[str, Tensor] = {}
    for ref in refs:
        magnitude = ref.get_weight().abs()
        scores[ref.name] = magnitude * stats[ref.name].norm.to(magnitude) if ref.name in stats else magnitude
    planned = dict(plan.layers)
    for name, mask in solve_global(scores, pattern.density).items():
        planned[name] = replace(planned[name], pattern=_share(int(mask.sum()), mask.numel()))
    return Plan(planned)


def _share(kept: int, size: int) -> Unstructured | Dense:
    return Dense() if kept == size else Unstructured(max(1, kept) / size)
