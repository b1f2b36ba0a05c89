"""What an adapter answers, and the rules that hold for every model.

An adapter is asked by `handles`; the highest `rank` that handles a model serves it. The base class finds linear layers,
transformers' `Conv1D` and convolutions, gives the reason for each layer that is left dense, and finds blocks by
structure; a family's adapter adds what only it knows (its output head, its own kinds of layers).
"""

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from ...core import ModelError, Registry, require_module, suggest
from ...nn import SparseTensor
from ..layer_ref import LayerRef
from ..structure import Block, repeated_blocks
from ..views import CONV2D, LINEAR, TRANSPOSED, AbstractView

# A weight smaller than this spends its time on the call, not on the multiplication.
_SMALLEST_OUT, _SMALLEST_IN = 8, 16

_CONVOLUTION = "convolution: name it to search it, its gain is predicted from a linear layer of its shape"
_SHARED = "several layers share its weight: name it to search it, its time is counted once"


class AbstractAdapter(ABC):
    """Knows one family of models."""

    rank: int = 0
    """Adapters that know more come first; the plain one has 0."""

    @abstractmethod
    def handles(self, model: nn.Module) -> bool:
        """Whether the model is of this family. Must not import the family's package."""

    def blocks(self, model: nn.Module) -> list[Block]:
        """`(name, module)` of the repeated blocks in the order in which they run."""
        return repeated_blocks(model)

    def heads(self, model: nn.Module) -> dict[str, str]:
        """Layers that produce the model's output: name -> reason why they stay dense unless named."""
        return {}

    @contextmanager
    def calibrating(self, model: nn.Module) -> Iterator[None]:
        """Settings for the time of calibration (for instance no key-value cache)."""
        yield

    def layers(self, model: nn.Module, mask_only: bool = False) -> list[LayerRef]:
        """Every layer with a weight matrix in the order of the model, each with its reason if it stays dense.

        Args:
            model: looked at, never changed.
            mask_only: convolutions, whose cost is predicted less well than that of linear layers, take part, and so
                do weights that several layers share.
        """
        heads = self.heads(model)
        inside = [f"{name}." for name, _ in self.blocks(model)]
        sharing = _sharing(model)
        modules = dict(model.named_modules())
        attention = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
        found = []
        for name, module in model.named_modules():
            ref = _reference(name, module)
            if ref is None:
                continue
            if not ref.skipped_reason and any(name.startswith(prefix) for prefix in attention):
                ref = replace(ref, skipped_reason=_ATTENTION)
            if not ref.skipped_reason and name in sharing:
                ref = _shared(ref, sharing[name], modules)
            if not ref.skipped_reason:
                soft = _default_reason(ref, heads, inside, mask_only)
                ref = replace(ref, skipped_reason=soft, may_ask=bool(soft))
            found.append(ref)
        return found


_ATTENTION = "nn.MultiheadAttention reads this weight directly instead of calling the layer"


def _view_of(module: nn.Module) -> AbstractView | None:
    if isinstance(module, nn.Linear):
        return LINEAR
    if isinstance(module, nn.Conv2d):
        return CONV2D
    # By name and module path: transformers need not be installed, let alone imported.
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return TRANSPOSED
    return None


def _reference(name: str, module: nn.Module) -> LayerRef | None:
    """The module as a layer, with its hard reason if it has one; None where it has no weight matrix."""
    view = _view_of(module)
    weight = module._parameters.get("weight")
    if view is None:
        kind, reason = _other_kind(module)
        if not reason:
            return None
        shape = (int(weight.shape[0]), int(weight[0].numel())) if weight is not None and weight.dim() >= 2 else (0, 0)
        return LayerRef(name, module, kind, shape, reason)
    if weight is None:
        return LayerRef(name, module, view.kind, (0, 0), "its weight is computed (parametrisation): remove that first")
    if isinstance(weight, UninitializedParameter):
        return LayerRef(name, module, view.kind, (0, 0), "its weight has no shape yet: run one batch first")
    if isinstance(weight, SparseTensor):
        return LayerRef(name, module, view.kind, weight.packed.shape, "its weight is packed already", view=view)
    matrix = view.weight(module)
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    return LayerRef(name, module, view.kind, shape, _hard_reason(module, view), view=view)


def _hard_reason(module: nn.Module, view: AbstractView) -> str:
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return _ATTENTION
    plain = {"linear": nn.Linear, "conv2d": nn.Conv2d}.get(view.kind)
    if plain is not None and getattr(type(module), "forward", None) is not getattr(plain, "forward", None):
        return f"{type(module).__name__} computes its output in its own way"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"convolution in {module.groups} groups: each group is a small layer of its own"
    weight = module._parameters["weight"]
    if weight is None or not weight.is_floating_point():
        return "its weight is not floating point"
    return ""


def _other_kind(module: nn.Module) -> tuple[str, str]:
    """Kind and reason of modules that hold much weight but no layer of ours; empty for all others."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding", "embedding: rows are looked up, not multiplied"
    if isinstance(module, nn.MultiheadAttention):
        return "attention", "nn.MultiheadAttention keeps its input projections in one parameter without a layer"
    if isinstance(module, nn.RNNBase):
        return "recurrent", "recurrent layers run in one fused operation"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution", f"{type(module).__name__} has no matrix view in this release"
    if isinstance(module, nn.Bilinear):
        return "bilinear", "bilinear layers have no matrix view"
    return "", ""


def _default_reason(ref: LayerRef, heads: dict[str, str], inside: Sequence[str], mask_only: bool) -> str:
    """Why a layer that could be sparse stays dense unless it is named; empty if nothing speaks against it."""
    if ref.name in heads:
        return heads[ref.name]
    if isinstance(ref.module, nn.Conv2d):
        if ref.module.in_channels <= 4:
            return "it reads the raw input: few weights, much to lose"
        return "" if mask_only else _CONVOLUTION
    if ref.also and not mask_only:
        return _SHARED
    if ref.shape[0] < _SMALLEST_OUT or ref.shape[1] < _SMALLEST_IN:
        return f"too small to gain: {ref.shape[0]}x{ref.shape[1]}"
    if inside and not any(ref.name.startswith(prefix) for prefix in inside):
        return "outside the repeated blocks: a small share of the time"
    return ""


def _sharing(model: nn.Module) -> dict[str, list[str]]:
    """Layer name -> names of all modules with the same weight parameter, in the order of the model; several of them."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)].append(name)
    return {name: names for names in owners.values() if len(names) > 1 for name in names}


def _shared(ref: LayerRef, names: Sequence[str], modules: Mapping[str, nn.Module]) -> LayerRef:
    """A layer whose weight others have too: layers of one kind are one, under the name of the first of them."""
    others = [name for name in names if name != ref.name]
    for name in others:
        other = _reference(name, modules[name])
        if other is None or other.skipped_reason or other.kind != ref.kind:
            advice = "give the layer a copy of its own to make it sparse"
            return replace(ref, skipped_reason=f"its weight is shared with {name}, which reads it otherwise: {advice}")
    if names[0] != ref.name:
        return replace(ref, skipped_reason=f"its weight is that of {names[0]}, and becomes sparse with it")
    return replace(ref, also=tuple(modules[name] for name in others))


adapters: Registry[AbstractAdapter] = Registry("adapters", AbstractAdapter)


def adapter_of(model: nn.Module) -> AbstractAdapter:
    """The adapter of highest rank that handles the model.

    Raises:
        ModelError: `model` is no module.
    """
    require_module(model)
    able = [adapter for _, adapter in adapters.items() if adapter.handles(model)]
    return max(able, key=lambda adapter: adapter.rank)


def blocks(model: nn.Module) -> list[Block]:
    """`(name, module)` of the model's repeated blocks in run order; empty where nothing repeats."""
    return adapter_of(model).blocks(model)


def layers(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    mask_only: bool = False,
) -> list[LayerRef]:
    """All layers of a model, each with the reason if it is left dense.

    Args:
        model: any module; looked at, never changed.
        include: exact names or `re:EXPRESSION` (whole name). Given, all others are skipped, and a layer that is skipped
            only by default (output head, too small, outside the blocks) takes part when it is named.
        exclude: the same forms; wins over `include`.
        mask_only: convolutions, whose cost is predicted less well than that of linear layers, take part, and so do
            weights that several layers share.

    Returns:
        In the order of the model. Those that take part have an empty `skipped_reason`.

    Raises:
        ModelError: a name or expression matches no layer.
    """
    found = adapter_of(model).layers(model, mask_only)
    names = [ref.name for ref in found]
    wanted = None if include is None else _matching(include, names, "include")
    unwanted = _matching(exclude or (), names, "exclude")
    chosen = []
    for ref in found:
        if wanted is not None and ref.name in wanted and ref.may_ask:
            ref = replace(ref, skipped_reason="", may_ask=False)
        if not ref.skipped_reason and wanted is not None and ref.name not in wanted:
            ref = replace(ref, skipped_reason="not among the included names")
        if ref.name in unwanted and (not ref.skipped_reason or ref.may_ask):
            ref = replace(ref, skipped_reason="excluded by name", may_ask=False)
        chosen.append(ref)
    return chosen


def _matching(patterns: Sequence[str], names: Sequence[str], what: str) -> set[str]:
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern.startswith("re:"):
            try:
                expression = re.compile(pattern[3:])
            except re.error as error:
                raise ModelError(
                    f"The {what} pattern {pattern!r} is not a valid regular expression: {error}."
                ) from error
            hits = {name for name in names if expression.fullmatch(name)}
        else:
            hits = {pattern} & set(names)
        if not hits:
            raise ModelError(
                f"The {what} pattern {pattern!r} matches no layer of this model. {suggest(pattern, names)}"
            )
        matched |= hits
    return matched
