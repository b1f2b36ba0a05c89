"""End-to-end time from layer costs: the dense model is timed once, with each layer timed inside it.

What cannot become sparse (attention products, norms, embeddings, calls) is the measured rest: dense model minus its
layers. A plan's time is the rest plus every layer's in-model time multiplied by its measured ratio to dense. Ratios
come from the profile, seconds from the model itself: caches and clocks are then those that the model really meets.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ..core import (
    AbstractPattern,
    DataError,
    Dense,
    ModelError,
    ProfileError,
    SparsewrightError,
    ValueType,
    require_module,
    require_whole_model,
)
from ..models import eval_mode, quiet
from .target import AbstractTarget
from .timing import interleave, torch_threads

# Something is always left outside the layers: calls, activations, norms.
LARGEST_SHARE = 0.98


@final
@dataclass(frozen=True)
class LayerTime:
    """One layer inside the dense model.

    Attributes:
        shape: `(out, in)`.
        tokens: rows of the layer's input, summed over its calls in one forward pass.
        calls: how often one forward pass calls it.
        seconds: dense time inside the model, all calls together.
    """

    shape: tuple[int, int]
    tokens: int
    calls: int
    seconds: float

    @property
    def tokens_per_call(self) -> int:
        """Rows of the input of one call."""
        return max(1, round(self.tokens / max(1, self.calls)))


@final
@dataclass(frozen=True)
class ModelTime:
    """A dense model at one input, measured.

    Attributes:
        total_s: one forward pass.
        layers: layer name -> its part.
        threads: intra-op threads.
    """

    total_s: float
    layers: Mapping[str, LayerTime]
    threads: int = 1

    @property
    def rest_s(self) -> float:
        """Seconds outside the layers: what no plan can remove."""
        return max(0.0, self.total_s - sum(layer.seconds for layer in self.layers.values()))

    @property
    def sparse_share(self) -> float:
        """Share of the time, 0..1, that is spent in the layers."""
        return 1.0 - self.rest_s / self.total_s

    def layer_seconds(
        self, target: AbstractTarget, name: str, pattern: AbstractPattern, value_dtype: ValueType = "fp32"
    ) -> float:
        """Seconds of one layer in the model under a choice on a target."""
        layer = self.layers[name]
        if isinstance(pattern, Dense) and value_dtype != "int8":
            return layer.seconds
        return layer.seconds * target.layer_cost(layer.shape, pattern, layer.tokens_per_call, value_dtype).ratio

    def predict(self, seconds: Mapping[str, float]) -> float:
        """End-to-end seconds when the named layers take so long instead; the others stay as they are."""
        unknown = [name for name in seconds if name not in self.layers]
        if unknown:
            raise ProfileError(f"The model was timed without the layer {unknown[0]!r}. Time it with this layer named.")
        # As a difference: with nothing named this is the measured total to the last bit.
        return self.total_s - sum(self.layers[name].seconds - spent for name, spent in seconds.items())

    def on(self, target: AbstractTarget) -> "ModelTime":
        """The same model on another machine: every layer at that machine's dense cost; the rest, which nobody measured
        there, is assumed to scale as the layers do."""
        layers = {
            name: LayerTime(
                layer.shape,
                layer.tokens,
                layer.calls,
                layer.calls * target.dense_cost(layer.shape, layer.tokens_per_call).seconds,
            )
            for name, layer in self.layers.items()
        }
        here = sum(layer.seconds for layer in self.layers.values())
        there = sum(layer.seconds for layer in layers.values())
        rest = self.rest_s * there / here if here > 0 else self.rest_s
        return ModelTime(rest + there, layers, self.threads)


def fitted(layers: Mapping[str, LayerTime], total_s: float) -> dict[str, LayerTime]:
    """Layers scaled down alike where together they fill more of the model than layers can.

    Each layer's time is a median of its own; on a disturbed machine medians add up to more than the whole.
    """
    spent = sum(layer.seconds for layer in layers.values())
    factor = min(1.0, LARGEST_SHARE * total_s / spent) if spent > 0 else 1.0
    return {name: replace(layer, seconds=factor * layer.seconds) for name, layer in layers.items()}


def model_time(total_dense_s: float, dense_costs: Mapping[str, float], chosen_costs: Mapping[str, float]) -> float:
    """End-to-end seconds of a plan from plain figures: `total - sum(dense) + sum(chosen)`.

    Args:
        total_dense_s: measured dense model.
        dense_costs: layer -> dense seconds at the same tokens.
        chosen_costs: layer -> seconds under the plan; layers left out stay dense.

    Raises:
        ProfileError: a chosen layer has no dense cost.
    """
    layers = {name: LayerTime((1, 1), 1, 1, cost) for name, cost in dense_costs.items()}
    return ModelTime(total_dense_s, layers).predict(chosen_costs)


def run_model(model: nn.Module, batch: Any) -> Any:
    """Call a model on a batch: a mapping by name, a tuple or list by position, a tensor as the only argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def require_runs(model: nn.Module, batch: Any) -> None:
    """Run a model once before it is timed, so that what it cannot take is told in one sentence.

    Args:
        model: in any mode; left in it. What it makes at its first run (lazy weights, cached tables) can be trained on
            later, which would not hold had timing's inference mode come first.
        batch: one input, see `run_model`.

    Raises:
        ModelError: no module, or its weights lie in parts on several processes.
        DataError: the model does not run on the batch.
    """
    require_module(model)
    require_whole_model(model)
    with quiet(model):
        try:
            run_model(model, batch)
        except SparsewrightError:
            raise
        except Exception as error:
            raise DataError(
                f"A model is timed on one input that it takes (a mapping by name, a tuple by position, a tensor), but "
                f"{type(model).__name__} given {_in_words(batch)} raised {type(error).__name__}: {error}. Pass what "
                "you would call the model with."
            ) from error


def _in_words(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"{{{', '.join(f'{name}: {_in_words(value)}' for name, value in batch.items())}}}"
    if isinstance(batch, tuple | list):
        return f"({', '.join(map(_in_words, batch))})"
    if isinstance(batch, Tensor):
        return f"a {str(batch.dtype).removeprefix('torch.')} tensor {tuple(batch.shape)}"
    return f"{batch!r:.80}"


def time_model(
    model: nn.Module,
    batch: Any,
    modules: Mapping[str, nn.Module],
    shapes: Mapping[str, tuple[int, int]],
    *,
    threads: int = 1,
    rounds: tuple[int, int] = (7, 40),
    seconds: float = 6.0,
) -> ModelTime:
    """Time a dense model and, in turns, the named layers inside it.

    Args:
        model: dense; left in the mode it was in.
        batch: one input, see `run_model`.
        modules: layer name -> module of the model.
        shapes: layer name -> `(out, in)`.
        threads: intra-op threads.
        rounds: least and most rounds.
        seconds: about how long to measure.

    Raises:
        ModelError: a named layer is never called, or see `require_runs`.
        DataError: the model does not run on the batch.
    """
    require_runs(model, batch)
    inside = _Inside(modules, shapes, threads)
    with eval_mode(model):

        def whole() -> object:
            return run_model(model, batch)

        def hooked() -> object:
            with inside:
                return inside.whole(lambda: run_model(model, batch))

        samples = interleave({"model": whole, "hooked": hooked}, threads=threads, rounds=rounds, seconds=seconds)
    total_s = samples["model"].median
    return ModelTime(total_s, inside.layers(total_s), threads)


class _Inside:
    """Hooks around the layers, there only while the hooked model runs."""

    def __init__(self, modules: Mapping[str, nn.Module], shapes: Mapping[str, tuple[int, int]], threads: int) -> None:
        self._modules = modules
        self._shapes = shapes
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._seconds: dict[str, list[float]] = {name: [] for name in modules}
        self._totals: list[float] = []
        self._calls: dict[str, int] = dict.fromkeys(modules, 0)
        self._tokens: dict[str, int] = dict.fromkeys(modules, 0)
        self._handles: list[Any] = []
        # Two readings of the clock cost time of their own, most of it in virtual machines.
        self._overhead = _clock_overhead(self._clock)

    def __enter__(self) -> None:
        for name, module in self._modules.items():
            self._calls[name] = self._tokens[name] = 0
            self._seconds[name].append(0.0)
            self._attach(name, module)

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _attach(self, name: str, module: nn.Module) -> None:
        started = 0.0

        def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal started
            self._tokens[name] += _rows(inputs, named)
            self._calls[name] += 1
            started = self._clock()

        def after(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            spent = self._clock() - started - self._overhead
            self._seconds[name][-1] += max(0.0, spent)
            if isinstance(output, Tensor) and output.dim() == 4:
                # A convolution sees one token per output pixel, not per input row.
                self._tokens[name] += output.shape[0] * output.shape[2] * output.shape[3] - _rows(inputs, named)

        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def whole(self, call: Callable[[], object]) -> object:
        """Run the model inside the hooks and keep how long it took."""
        started = self._clock()
        found = call()
        self._totals.append(max(self._clock() - started, 1e-9))
        return found

    def layers(self, total_s: float) -> dict[str, LayerTime]:
        """Each layer's share of its own run, times the seconds of the undisturbed model.

        Shares of one run are comparable whatever the clock did between runs; the hooks' own time goes to the rest, so
        that a prediction errs on the safe side.
        """
        silent = [name for name, calls in self._calls.items() if not calls]
        if silent:
            raise ModelError(
                f"The layer {silent[0]!r} is never called with this batch, so it has no cost. Exclude it, or give a "
                "batch that reaches it."
            )
        # The first two runs warm up.
        first = min(2, len(self._totals) - 1)
        totals = np.array(self._totals[first:])
        measured = {
            name: LayerTime(
                self._shapes[name],
                self._tokens[name],
                self._calls[name],
                total_s * float(np.median(np.array(spent[first:]) / totals)),
            )
            for name, spent in self._seconds.items()
        }
        return fitted(measured, total_s)


def _rows(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Rows of the first tensor that a layer is called with, by position or by name; 0 without one."""
    x = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
    return 0 if x is None or not x.dim() else x.numel() // max(1, x.shape[-1])


def _clock_overhead(clock: Any, draws: int = 200) -> float:
    with torch_threads(torch.get_num_threads()):
        spans = []
        for _ in range(draws):
            started = clock()
            spans.append(clock() - started)
    return float(np.median(spans))
