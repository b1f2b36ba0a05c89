"""The parts of a model: what is outside the blocks, each block, and the layers outside that become sparse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from ...bundle.state import weight_name
from ...core import ModelError
from ...models import MASK, LayerRef
from ...models.structure import Block
from .destination import Row
from .passes import Group
from .skeleton import Skeleton
from .source import StoredTensors


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Tensors that are finished together.

    Attributes:
        name: of the block, or a word in brackets for what is outside.
        copied: stored names of the tensors that stay as they are.
        state: state names of what must be in memory for the part to run.
        layers: those that become sparse.
    """

    name: str
    copied: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    layers: Group = ()


@final
@dataclass(frozen=True, eq=False)
class Outline:
    """All parts of a model.

    Attributes:
        front: everything outside the blocks that stays dense, and what the files hold beside the model.
        blocks: block name -> its part.
        back: layers outside the blocks that become sparse.
        weights: sparse layer -> stored name of its weight.
        masks: sparse layer -> names of its masks, one for each module that reads the weight.
    """

    front: Part
    blocks: Mapping[str, Part]
    back: Part
    weights: Mapping[str, str]
    masks: Mapping[str, tuple[str, ...]]

    def names(self, part: Part) -> list[str]:
        """Everything that is written for a part."""
        sparse = [name for ref in part.layers for name in (self.weights[ref.name], *self.masks[ref.name])]
        return [*part.copied, *sparse]

    def rows(self, skeleton: Skeleton, source: StoredTensors, files: Mapping[Path, str]) -> dict[str, list[Row]]:
        """File name -> the tensors it will hold; a mask stands in the file of its weight.

        Args:
            skeleton: tells dtypes.
            source: tells shapes.
            files: file of the source -> name of the file that takes its tensors.
        """
        state = {stored: name for name, stored in skeleton.names.items()}
        masks = {self.weights[layer]: names for layer, names in self.masks.items()}
        found: dict[str, list[Row]] = {name: [] for name in files.values()}
        for stored, (file, entry) in source.places.items():
            dtype = skeleton.dtype(state[stored]) if stored in state else source.dtype(stored)
            rows = found[files[file]]
            rows.append((stored, dtype, entry.shape))
            rows.extend((mask, torch.bool, entry.shape) for mask in masks.get(stored, ()))
        return found


def outline(skeleton: Skeleton, source: StoredTensors, blocks: Sequence[Block], chosen: Sequence[LayerRef]) -> Outline:
    """Divide a model.

    Args:
        skeleton: the model.
        source: its files.
        blocks: in any order.
        chosen: the layers that become sparse.

    Raises:
        ModelError: a weight that becomes sparse is shared between blocks.
    """
    paths = {module: name for name, module in skeleton.model.named_modules()}
    holders = {ref.name: [paths[module] for module in ref.holders] for ref in chosen}
    weights = {ref.name: skeleton.names[weight_name(ref.name)] for ref in chosen}
    masks = {layer: tuple(f"{name}.{MASK}".removeprefix(".") for name in names) for layer, names in holders.items()}
    sparse = set(weights.values())
    names = [name for name, _ in blocks]
    home = {layer: {_block_of(path, names) for path in found} for layer, found in holders.items()}
    apart = next((layer for layer, found in home.items() if len(found) > 1), None)
    if apart is not None:
        raise ModelError(
            f"{apart} shares its weight with a layer of another block, and streaming takes one block at a time. "
            "Leave it out of the plan, or load the model and call sparsify_."
        )
    taken: set[str] = set()

    def copied(state: Sequence[str]) -> tuple[str, ...]:
        # A tensor that several parts share is copied with the first of them.
        found = [s for s in dict.fromkeys(skeleton.names[name] for name in state) if s not in sparse | taken]
        taken.update(found)
        return tuple(found)

    outside = copied(skeleton.outside(names))
    parts = {}
    for name in names:
        state = skeleton.inside(name)
        layers = tuple(ref for ref in chosen if home[ref.name] == {name})
        parts[name] = Part(name, copied(state), tuple(state), layers)
    known = set(skeleton.names.values())
    front = Part("(outside)", outside + tuple(name for name in source.places if name not in known))
    back = Part("(outside layers)", layers=tuple(ref for ref in chosen if home[ref.name] == {""}))
    return Outline(front, parts, back, weights, masks)


def _block_of(path: str, blocks: Sequence[str]) -> str:
    """The block that a module is in; empty if it is in none."""
    return next((name for name in blocks if path == name or path.startswith(f"{name}.")), "")
