"""Calibration block by block: each block sees inputs that come from the sparsified blocks in front of it.

Source: the order of SparseGPT and Wanda (arXiv:2301.00774, arXiv:2306.11695). Layers outside the blocks, and models
without blocks, are calibrated in one pass over the whole model after the blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from ..core import DataError, LayerStats
from ..sparsifiers import Needs
from .adapters import adapter_of
from .data import Batch, fitting
from .flow import Call, capture, chains
from .layer_ref import LayerRef
from .modes import quiet
from .statistics import Collector

Visit = Callable[[Sequence[LayerRef], Mapping[str, LayerStats]], None]
"""Called with the layers of one block and their stats; may change these layers' weights."""


def calibrate(
    model: nn.Module, batches: Sequence[Batch], layers: Sequence[LayerRef], needs: Mapping[str, Needs], visit: Visit
) -> None:
    """Walk the model in run order: collect a block's stats, hand them to `visit`, go on with what the block gives then.

    Args:
        model: run in eval mode without gradients; modes are restored, hooks removed, even on errors.
        batches: from `batches_of`.
        layers: those to be calibrated.
        needs: layer name -> what its sparsifier needs. Layers that need nothing come with no stats.
        visit: called once per block that holds some of the layers, then once for the layers outside.

    Raises:
        DataError: the data never reach a layer, or the model fails on a batch.
        NumericError: an input is NaN or infinite; the message names layer and position.
    """
    if all(needs[ref.name] == "none" for ref in layers):
        visit(layers, {})
        return
    if not batches:
        raise DataError("Calibration needs data. Pass data=[...] with at least one batch.")
    adapter = adapter_of(model)
    left = {ref.name: ref for ref in layers}
    with quiet(model), adapter.calibrating(model):
        for chain in chains(model, adapter.blocks(model), batches[0]):
            mine = [[left.pop(ref.name) for ref in _inside(name, left)] for name, _ in chain]
            last = max((place for place, refs in enumerate(mine) if refs), default=-1)
            if last < 0:
                continue
            # Blocks behind the last one of interest need not run.
            _walk(model, chain[: last + 1], mine[: last + 1], batches, needs, visit)
        if left:
            rest = list(left.values())
            collectors = _collectors(rest, needs)
            for number, batch in enumerate(batches):
                with fitting(number):
                    _run(collectors, batch, partial(batch.run, model))
            visit(rest, _stats(collectors))


def _inside(block: str, layers: Mapping[str, LayerRef]) -> list[LayerRef]:
    return [ref for name, ref in layers.items() if name == block or name.startswith(f"{block}.")]


def _walk(
    model: nn.Module,
    chain: Sequence[tuple[str, nn.Module]],
    layers: Sequence[Sequence[LayerRef]],
    batches: Sequence[Batch],
    needs: Mapping[str, Needs],
    visit: Visit,
) -> None:
    calls = capture(model, chain, batches)
    for place, ((name, block), refs) in enumerate(zip(chain, layers)):
        if refs:
            collectors = _collectors(refs, needs)
            for number, (batch, by_block) in enumerate(zip(batches, calls)):
                if name in by_block:
                    with fitting(number):
                        _run(collectors, batch, partial(by_block[name].run, block))
            visit(refs, _stats(collectors))
        if place + 1 == len(chain):
            return
        following = chain[place + 1][0]
        for number, by_block in enumerate(calls):
            with fitting(number):
                _feed(by_block, name, following, block)


def _feed(by_block: dict[str, Call], name: str, following: str, block: nn.Module) -> None:
    """Run a block and hand its output to the next; its own inputs are let go."""
    call = by_block.pop(name, None)
    if call is not None and following in by_block:
        by_block[following].hidden = call.run(block)


def _collectors(layers: Sequence[LayerRef], needs: Mapping[str, Needs]) -> list[Collector]:
    kinds: tuple[Needs, ...] = ("norm", "gram")
    grouped = [(kind, [ref for ref in layers if needs[ref.name] == kind]) for kind in kinds]
    return [Collector(refs, kind) for kind, refs in grouped if refs]


def _run(collectors: Sequence[Collector], batch: Batch, forward: Callable[[], object]) -> None:
    """One forward pass with the collectors' hooks on."""
    if not collectors:
        return
    first, rest = collectors[0], collectors[1:]
    with first.open():
        first.batch(batch)
        if rest:
            _run(rest, batch, forward)
        else:
            forward()


def _stats(collectors: Sequence[Collector]) -> dict[str, LayerStats]:
    return {name: stats for collector in collectors for name, stats in collector.stats().items()}
