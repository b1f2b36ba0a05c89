"""`measure`: a whole model beside the dense one and its rivals, interleaved in one run."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from ..core import ModelError, ProfileError, is_number, require_module
from ..models import evaluating
from ..nn import SparseTensor
from .cold_start import ColdStart, cold_start
from .energy import joules_per_call, package_counters
from .energy_windows import EnergyWindow, energy_window
from .fingerprint import this_machine
from .model_time import require_runs, run_model
from .profile import now
from .rivals import TORCH_FP32, Rival, build_rivals, weight_bytes
from .timing import Samples, check_timing, interleave, speedup, torch_threads

OURS = "ours"


@final
@dataclass(frozen=True)
class MeasuredRow:
    """One candidate. None means not measured; `reason` says why where a whole row is missing.

    Attributes:
        name: `torch fp32`, `ours`, or a rival's name.
        p50_s, p95_s, p99_s: wall seconds of one call.
        cpu_s: median thread CPU seconds of one call (one thread), else None.
        clock: which clock `speedup` compares.
        throughput_per_s: items per wall second at the median.
        speedup: dense time / this time, median over paired rounds.
        speedup_interval: bootstrap 95 % interval.
        file_bytes: weights on disk.
        load_s, cold_start_s, peak_rss_bytes: of a fresh process.
        energy_j: package joules of one call.
        rounds: samples.
        reason: why this row, or a part of it, was not measured.
    """

    name: str
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    cpu_s: float | None = None
    clock: str = ""
    throughput_per_s: float | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    file_bytes: int | None = None
    load_s: float | None = None
    cold_start_s: float | None = None
    peak_rss_bytes: int | None = None
    energy_j: float | None = None
    rounds: int = 0
    reason: str = ""


@final
@dataclass(frozen=True)
class Measurement:
    """All candidates of one interleaved run.

    Attributes:
        rows: the dense model first, then ours, then rivals.
        items: batch size.
        threads: intra-op threads.
        machine: plain data of the machine.
        created: ISO date and time.
        rivals: name -> rival, whose `.model` can be scored.
        windows: when each candidate ran alone, for a power meter; empty unless asked for.
    """

    rows: tuple[MeasuredRow, ...]
    items: int
    threads: int
    machine: Mapping[str, Any]
    created: str
    rivals: Mapping[str, Rival] = field(default_factory=dict, compare=False, repr=False)
    windows: tuple[EnergyWindow, ...] = ()

    def row(self, name: str) -> MeasuredRow:
        """The row of one candidate.

        Raises:
            ModelError: it was not measured.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ModelError(f"{name!r} was not measured; there are {', '.join(row.name for row in self.rows)}.")

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "items": self.items,
            "threads": self.threads,
            "machine": dict(self.machine),
            "created": self.created,
            "windows": [asdict(window) for window in self.windows],
        }


def measure(
    model: nn.Module,
    batch: Any,
    rivals: str | Iterable[str] | Sequence[Rival] | None = None,
    *,
    dense: nn.Module | None = None,
    threads: int = 1,
    seconds: float = 20.0,
    rounds: tuple[int, int] = (9, 200),
    loaders: Mapping[str, tuple[str, str]] | None = None,
    file_bytes: Mapping[str, int] | None = None,
    folder: str | Path | None = None,
    source: str = "",
    energy_seconds: float = 0.0,
) -> Measurement:
    """Time a model, beside the dense one and rivals where given.

    Args:
        model: on the CPU; run in eval mode.
        batch: one input.
        rivals: names, `all`, rivals built before (`build_rivals`), or None for none.
        dense: the dense model; default `model` itself where nothing of it is packed.
        threads: intra-op threads.
        seconds: about how long to time.
        rounds: least and most samples per candidate.
        loaders: name -> (`module:function`, argument) by which a fresh process loads it, for load time, cold start and
            peak memory; other rows keep None there.
        file_bytes: name -> bytes on disk, where the caller knows better than the weights' own size.
        folder: where exported rivals are written; default a temporary folder that goes with the measurement's rivals.
        source: how a fresh process loads the dense model, see `build_rivals`.
        energy_seconds: after the timing, so long every candidate runs alone, for the log of a power meter; 0 leaves
            that out, and so does a processor whose own counter can be read.

    Returns:
        One row per candidate; rivals that could not be built have a row with the reason.

    Raises:
        ModelError: rivals are asked for, but the model is packed and no dense model is given; a model is no module,
            or its weights lie in parts on several processes (`fully_shard`).
        DataError: a model does not run on the batch.
        ProfileError: threads, rounds or seconds are no numbers to time by.
    """
    require_module(model)
    if dense is not None:
        require_module(dense)
    check_timing(threads, rounds, seconds)
    if not is_number(energy_seconds) or energy_seconds < 0:
        raise ProfileError(f"A window for a power meter takes seconds, 0 (none) or more, got {energy_seconds!r}.")
    packed = any(isinstance(m._parameters.get("weight"), SparseTensor) for m in model.modules())
    if dense is None and not packed:
        dense = model
    if dense is None and rivals is not None:
        raise ModelError("Rivals are built from the dense model. Pass dense= beside the packed one.")
    candidates: dict[str, nn.Module] = {} if dense is None else {TORCH_FP32: dense}
    if model is not dense:
        candidates[OURS] = model
    for candidate in candidates.values():
        require_runs(candidate, batch)
    built = _built(rivals, dense, batch, folder, threads, source)
    candidates.update({rival.name: rival.model for rival in built if rival.model is not None})
    samples = _timed(candidates, batch, threads, seconds, rounds)
    reference = samples.get(TORCH_FP32)
    items = _items(batch)
    rows = []
    for name, module in candidates.items():
        rival = next((rival for rival in built if rival.name == name), None)
        known = (file_bytes or {}).get(name) or (rival.file_bytes if rival else weight_bytes(module))
        loader = (loaders or {}).get(name) or ((rival.loader, rival.argument) if rival and rival.loader else None)
        rows.append(_row(name, samples[name], reference, items, known, loader, batch, _energy(module, batch, threads)))
    rows += [MeasuredRow(rival.name, reason=rival.reason) for rival in built if rival.model is None]
    windows = _windows(candidates, batch, items, threads, energy_seconds)
    return Measurement(
        rows=tuple(rows),
        items=items,
        threads=threads,
        machine=this_machine().to_data(),
        created=now(),
        rivals={rival.name: rival for rival in built},
        windows=windows,
    )


def _built(
    rivals: str | Iterable[str] | Sequence[Rival] | None,
    dense: nn.Module | None,
    batch: Any,
    folder: str | Path | None,
    threads: int,
    source: str,
) -> list[Rival]:
    if rivals is None or dense is None:
        return []
    if not isinstance(rivals, Iterable):
        raise ModelError(f"Rivals are names, 'all', or rivals built before, got {rivals!r}. Pass rivals='all', say.")
    given = [rivals] if isinstance(rivals, str) else list(rivals)
    ready = [rival for rival in given if isinstance(rival, Rival)]
    names = [name for name in given if isinstance(name, str)]
    if names:
        place = folder or tempfile.mkdtemp(prefix="sparsewright-rivals-")
        all_named = names == ["all"]
        ready += build_rivals(dense, batch, "all" if all_named else names, folder=place, threads=threads, source=source)
    return ready


def _timed(
    candidates: Mapping[str, nn.Module], batch: Any, threads: int, seconds: float, rounds: tuple[int, int]
) -> dict[str, Samples]:
    modes = {module: module.training for model in candidates.values() for module in model.modules()}
    for model in candidates.values():
        model.eval()
    try:
        calls = {name: _bind(model, batch) for name, model in candidates.items()}
        return interleave(calls, threads=threads, seconds=seconds, rounds=rounds, tolerance=0.005, warm=1)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _bind(model: nn.Module, batch: Any) -> Callable[[], object]:
    return lambda: run_model(model, batch)


def _row(
    name: str,
    samples: Samples,
    reference: Samples | None,
    items: int,
    file_bytes: int | None,
    loader: tuple[str, str] | None,
    batch: Any,
    energy_j: float | None,
) -> MeasuredRow:
    ratio = speedup(samples, reference) if reference is not None else None
    start, reason = _cold(loader, batch, samples.threads)
    return MeasuredRow(
        name=name,
        p50_s=samples.latency(50),
        p95_s=samples.latency(95),
        p99_s=samples.latency(99),
        cpu_s=samples.median if samples.threads == 1 else None,
        clock=samples.clock,
        throughput_per_s=items / samples.latency(50),
        speedup=ratio.value if ratio else None,
        speedup_interval=(ratio.low, ratio.high) if ratio else None,
        file_bytes=file_bytes,
        load_s=start.load_s if start else None,
        cold_start_s=start.total_s if start else None,
        peak_rss_bytes=start.peak_rss_bytes if start else None,
        energy_j=energy_j,
        rounds=len(samples.cpu),
        reason=reason,
    )


def _cold(loader: tuple[str, str] | None, batch: Any, threads: int) -> tuple[ColdStart | None, str]:
    if loader is None or not isinstance(batch, Mapping):
        return None, "load time not measured: no loader given" if loader is None else "load time needs a named batch"
    try:
        return cold_start(*loader, batch, threads=threads), ""
    except ModelError as error:
        return None, f"load time not measured: {error}"


def _energy(model: nn.Module, batch: Any, threads: int) -> float | None:
    if package_counters() is None:
        return None
    with torch_threads(threads), torch.inference_mode():
        return joules_per_call(lambda: run_model(model, batch), 20)


def _windows(
    candidates: Mapping[str, nn.Module], batch: Any, items: int, threads: int, seconds: float
) -> tuple[EnergyWindow, ...]:
    if not seconds or package_counters() is not None:
        return ()
    found = []
    for name, model in candidates.items():
        with torch_threads(threads), evaluating(model):
            found.append(energy_window(name, _bind(model, batch), items, seconds))
    return tuple(found)


def _items(batch: Any) -> int:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    sizes = [int(value.shape[0]) for value in values if isinstance(value, torch.Tensor) and value.dim()]
    return sizes[0] if sizes else 1
