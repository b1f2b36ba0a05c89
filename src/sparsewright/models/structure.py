"""Find what repeats in a model: its blocks, in the order in which they run.

A block is a module of the class that holds most weight in the model's lists. Structure decides, not names, so that
BERT's `encoder.layer`, Llama's `model.layers`, GPT-2's `transformer.h` and Swin's stages are all found.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from torch import nn

Block = tuple[str, nn.Module]


def repeated_blocks(model: nn.Module) -> list[Block]:
    """The blocks of a model in the order of registration; empty where nothing repeats.

    Only containers count (a list of bare linears is no list of blocks), at least two of one class, never nested.
    """
    names = {module: name for name, module in model.named_modules()}
    members: dict[type[nn.Module], list[nn.Module]] = defaultdict(list)
    in_sequence: set[type[nn.Module]] = set()
    weights: Counter[type[nn.Module]] = Counter()
    for module in model.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module.children())
        kinds = {type(child) for child in children}
        # A Sequential of different things is one flow, not a repetition.
        if len(kinds) != 1 or isinstance(children[0], nn.ModuleList | nn.Sequential):
            continue
        if isinstance(module, nn.Sequential):
            in_sequence.add(type(children[0]))
        for child in children:
            if any(True for _ in child.children()) and child not in members[type(child)]:
                members[type(child)].append(child)
                weights[type(child)] += sum(parameter.numel() for parameter in child.parameters())
    candidates = [kind for kind, found in members.items() if len(found) >= 2]
    if not candidates:
        return []
    # The class that holds most of the weights: experts inside a block lose against the blocks around them.
    chosen = max(candidates, key=lambda kind: (weights[kind], len(members[kind])))
    # Stages of blocks: what stands in a Sequential inside them runs one after the other, so it is the finer block.
    for kind in candidates:
        if kind in in_sequence and weights[kind] > weights[chosen] / 2 and _all_within(members[kind], members[chosen]):
            chosen = kind
    blocks = [(names[module], module) for module in members[chosen]]
    outer = [name for name, _ in blocks]
    return [
        (name, module)
        for name, module in blocks
        if not any(name != other and name.startswith(f"{other}.") for other in outer)
    ]


def _all_within(inner: Sequence[nn.Module], outer: Sequence[nn.Module]) -> bool:
    """Whether every inner module is a proper part of an outer one."""
    parts = {part for module in outer for part in module.modules() if part is not module}
    return all(module in parts for module in inner)
