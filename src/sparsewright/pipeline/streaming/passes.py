"""Collect a block's statistics in several passes, so that few gram matrices are in memory at a time.

Layers that read one tensor (query, key and value) have one gram matrix between them. A pass collects as many different
ones as are together no larger than the largest of the block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from ...core import LayerStats
from ...models import Batch, LayerRef
from ...models.statistics import Collector
from ...sparsifiers import Needs

Forward = Callable[[int], object]
"""Runs the part on the batch of that number."""

Group = tuple[LayerRef, ...]
"""Layers that have one gram matrix between them."""


class ReadApartError(Exception):
    """Layers that read one tensor in the first batch read several in a later one."""


@final
@dataclass(frozen=True, eq=False)
class Pass:
    """What is collected at a time.

    Attributes:
        grams: groups of layers whose gram matrix is collected.
        norms: layers of which square sums are enough.
        bare: layers that need nothing.
    """

    grams: tuple[Group, ...] = ()
    norms: Group = ()
    bare: Group = ()

    @property
    def layers(self) -> list[LayerRef]:
        """All of them."""
        return [*self.bare, *self.norms, *(ref for group in self.grams for ref in group)]


def plan_passes(refs: Sequence[LayerRef], needs: Mapping[str, Needs], groups: Sequence[Group]) -> list[Pass]:
    """Passes in the order of the layers.

    Args:
        refs: layers of one part.
        needs: layer name -> what its sparsifier needs.
        groups: of those that need a gram matrix.
    """
    bare = tuple(ref for ref in refs if needs[ref.name] == "none")
    norms = tuple(ref for ref in refs if needs[ref.name] == "norm")
    passes = [Pass((), norms, bare)] if bare or norms else []
    room = max((group[0].shape[1] ** 2 for group in groups), default=0)
    taken: list[Group] = []
    for group in groups:
        if taken and sum(each[0].shape[1] ** 2 for each in (*taken, group)) > room:
            passes.append(Pass(tuple(taken)))
            taken = []
        taken.append(group)
    return [*passes, Pass(tuple(taken))] if taken else passes


def read_together(refs: Sequence[LayerRef], forward: Forward) -> list[Group]:
    """Groups of layers that read one tensor one after the other, seen in the first batch."""
    seen: list[tuple[LayerRef, bool]] = []
    with _watching(refs, lambda ref, same: seen.append((ref, same))):
        forward(0)
    groups: list[list[LayerRef]] = []
    for ref, same in seen:
        if same:
            groups[-1].append(ref)
        elif not any(ref is other for group in groups for other in group):
            groups.append([ref])
    found: list[Group] = []
    for group in groups:
        once = all(sum(ref is other for other, _ in seen) == 1 for ref in group)
        found.extend([tuple(group)] if once else [(ref,) for ref in dict.fromkeys(group)])
    found = list(dict.fromkeys(found))
    reached = {ref.name for group in found for ref in group}
    # Those that a later batch may reach.
    return found + [(ref,) for ref in refs if ref.name not in reached]


def collect(wanted: Pass, batches: Sequence[Batch], forward: Forward) -> dict[str, LayerStats]:
    """Layer name -> stats, bit-equal to those that are collected for all layers at once.

    Raises:
        ReadApartError: a group does not hold in every batch.
        DataError: a layer is never reached.
        NumericError: an input is NaN or infinite; names layer and position.
    """
    collectors = []
    if wanted.norms:
        collectors.append(Collector(wanted.norms, "norm"))
    if wanted.grams:
        collectors.append(Collector([group[0] for group in wanted.grams], "gram"))
    for number, batch in enumerate(batches) if collectors else ():
        with ExitStack() as hooks:
            hooks.enter_context(_together(wanted.grams))
            for collector in collectors:
                hooks.enter_context(collector.open())
                collector.batch(batch)
            forward(number)
    stats = {name: found for collector in collectors for name, found in collector.stats().items()}
    for group in wanted.grams:
        stats.update({ref.name: stats[group[0].name] for ref in group})
    return stats


@contextmanager
def _together(groups: Sequence[Group]) -> Iterator[None]:
    """Raise ReadApartError unless every layer behind the first of its group reads what the one before it read."""
    several = [group for group in groups if len(group) > 1]
    leader = {ref.name: ref is group[0] for group in several for ref in group}
    calls = dict.fromkeys(leader, 0)

    def check(ref: LayerRef, same: bool) -> None:
        calls[ref.name] += 1
        if not same and not leader[ref.name]:
            raise ReadApartError

    with _watching([ref for group in several for ref in group], check):
        yield
    if any(count != 1 for count in calls.values()):
        raise ReadApartError


@contextmanager
def _watching(refs: Sequence[LayerRef], see: Callable[[LayerRef, bool], object]) -> Iterator[None]:
    """Call `see(layer, reads the tensor that the layer before it read)` at each call of a layer."""
    last: list[tuple[Tensor, int]] = []

    def hook(ref: LayerRef) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(inputs, Tensor):
                return
            # Convolutions of one input may cut different patches from it.
            same = bool(last) and last[0][0] is inputs and last[0][1] == inputs._version and ref.kind != "conv2d"
            last[:] = [] if ref.kind == "conv2d" else [(inputs, inputs._version)]
            see(ref, same)

        return before

    hooks = [module.register_forward_pre_hook(hook(ref), with_kwargs=True) for ref in refs for module in ref.holders]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
        last.clear()
