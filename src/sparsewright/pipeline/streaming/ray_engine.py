"""The Ray engine: the layers of a block are solved on the machines of a Ray cluster.

Each is a task of its own, which Ray starts again elsewhere when its worker or machine dies. Workers use as many threads
as this process, and refuse to answer with another instruction set: both change the last bits of a matrix product.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, final

import torch
from torch import Tensor

from ...core import (
    LayerPlan,
    LayerStats,
    MachineError,
    MissingPackageError,
    SparsewrightError,
    instruction_set,
)
from ...models import LayerResult, solve_layer
from ...sparsifiers import AbstractSparsifier, Sparsified
from .engine import AbstractEngine, LayerAnswer, LayerTask, engines

# How often a task is started again after its worker or machine died.
_RETRIES = 5

# Shape, dtype and bytes: Ray shares arrays between processes without a copy, tensors it would pickle.
Packed = tuple[tuple[int, ...], torch.dtype, Any]


@final
@engines.register("ray")
class RayEngine(AbstractEngine):
    """The layers of a block at once on the machines of a Ray cluster.

    It is the one that this process is connected to, the one that RAY_ADDRESS names, or this machine alone.
    """

    @contextmanager
    def open(self) -> Iterator[None]:
        """Connected to a cluster inside the block; what was connected before stays so."""
        if find_spec("ray") is None:
            raise MissingPackageError("engine='ray' needs Ray. Run: pip install 'sparsewright[ray]'")
        import ray

        if ray.is_initialized():
            yield
            return
        # A tool that runs on other people's models sends nothing anywhere of its own accord.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="ERROR")
        try:
            yield
        finally:
            ray.shutdown()

    def solve(self, tasks: Iterable[LayerTask]) -> Iterator[LayerAnswer]:
        """All at once; answers come in order."""
        import ray

        threads = torch.get_num_threads()
        # A task that asks for more processors than any machine has would wait for ever.
        most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        remote = ray.remote(num_cpus=min(threads, int(most) or 1), max_retries=_RETRIES)(_solve)
        shared: dict[int, Any] = {}
        under_way = []
        for task in tasks:
            key = id(task.stats)
            if key not in shared:
                shared[key] = ray.put(_pack_stats(task.stats))
            under_way.append(
                (
                    task.layer,
                    remote.remote(
                        threads,
                        instruction_set(),
                        task.layer,
                        ray.put(_pack(task.weight)),
                        task.planned,
                        task.sparsifier,
                        task.method,
                        shared[key],
                    ),
                )
            )
            del task
        while under_way:
            layer, answer = under_way.pop(0)
            yield _fetch(layer, answer)


def _fetch(layer: str, answer: Any) -> LayerAnswer:
    import ray

    try:
        mask, weight, result = ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        # What the worker raised, without Ray's traceback around it.
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, SparsewrightError) else error) from None
    except ray.exceptions.RayError as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise MachineError(
            f"Ray could not solve {layer} ({first}). Blocks that are done are kept: look after the cluster and run the "
            "same call again."
        ) from error
    return LayerAnswer(layer, Sparsified(_unpack(mask), _unpack(weight)), result)


def _solve(
    threads: int,
    expected: str,
    layer: str,
    weight: Packed,
    planned: LayerPlan,
    sparsifier: AbstractSparsifier,
    method: str,
    stats: Any,
) -> tuple[Packed, Packed, LayerResult]:
    """What a worker does."""
    torch.set_num_threads(threads)
    if instruction_set() != expected:
        raise MachineError(
            f"A worker runs {instruction_set()}, this process {expected}: their last bits differ. Use machines of one "
            "kind, or set SPARSEWRIGHT_ISA alike on all."
        )
    after, result = solve_layer(layer, _unpack(weight), planned, sparsifier, method, _unpack_stats(stats))
    return _pack(after.mask), _pack(after.weight), result


def _pack(tensor: Tensor) -> Packed:
    plain = tensor.contiguous()
    return tuple(plain.shape), plain.dtype, plain.reshape(-1).view(torch.uint8).numpy()


def _unpack(packed: Packed) -> Tensor:
    shape, dtype, array = packed
    # A copy: what Ray shares between processes may not be written to.
    return torch.from_numpy(array.copy()).view(dtype).reshape(shape)


def _pack_stats(stats: LayerStats | None) -> Any:
    if stats is None:
        return None
    gram = None if stats.gram is None else _pack(stats.gram)
    return stats.tokens, _pack(stats.mean), _pack(stats.square_sum), gram


def _unpack_stats(packed: Any) -> LayerStats | None:
    if packed is None:
        return None
    tokens, mean, square_sum, gram = packed
    return LayerStats(tokens, _unpack(mean), _unpack(square_sum), None if gram is None else _unpack(gram))
