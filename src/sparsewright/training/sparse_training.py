"""`sparse_training_`: masks that come and move while a model is trained, by a schedule, with any torch optimiser.

One object follows the optimiser through hooks of torch's own: it counts the steps that counted, asks the schedule for
new masks when they are due, and keeps what is dropped at zero (`KeptMasks`) or alive behind the mask (`LiveWeights`).
The training loop, the model's classes, parameters and state_dict keys stay as they are.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..core import DataError, ModelError, RecipeError, is_distributed, is_whole, require_finite, require_module
from ..models import PlanLike
from .distributed import KeptGradients, require_same_everywhere
from .keep_masks import KeptMasks, never
from .live_weights import LiveWeights, require_one_gradient
from .masked_weights import MaskedWeight, masked_weights
from .schedule_state import require_state
from .scheduled_layers import ScheduledLayer, mark, require_free, scheduled_layers, unmark
from .schedules import AbstractSchedule, MaskChange, Timing, schedules
from .step_hooks import before_update, was_skipped

_NO_DENSE_GRADIENTS = (
    "This schedule looks at the gradients of dropped weights, and all of them are zero. If the model is wrapped by "
    "data_parallel, pass its second result as traffic=, so that they are sent where they are needed."
)


@final
class SparseTraining:
    """Masks of a model under a schedule; what `sparse_training_` returns, and what callbacks of trainers hold.

    Made without an optimiser, it writes the first masks beside the weights, so that checkpoints can be loaded into the
    model; `attach` begins the training. Also a context manager: it ends with `finish()`, after an error with
    `remove()`.

    Args:
        model, pattern, schedule, every, begin, end, total, filter_fn, include, exclude, seed, traffic: see
            `sparse_training_`.

    Attributes:
        layers: layer name -> the layer and its final pattern.
        schedule: what decides.
        timing: when masks may change.
        step: optimiser steps that counted so far.
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: PlanLike | None = None,
        *,
        schedule: str | AbstractSchedule,
        every: int | None = None,
        begin: int = 0,
        end: int | None = None,
        total: int | None = None,
        filter_fn: Callable[[nn.Module, str], bool] | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        seed: int = 0,
        traffic: KeptGradients | None = None,
    ) -> None:
        require_module(model)
        self.schedule = schedules.get(schedule) if isinstance(schedule, str) else schedule
        if not isinstance(self.schedule, AbstractSchedule):
            raise RecipeError(f"schedule is a name or an AbstractSchedule, got {type(schedule).__name__}.")
        if not is_whole(seed, 0):
            raise RecipeError(f"The seed of a mask schedule is a whole number of at least 0, got {seed!r}.")
        self._asked = (begin, every, end)
        self._total, self._seed, self._traffic, self._model = total, seed, traffic, model
        # An end that only the trainer knows comes with `attach`.
        known = total is not None or end is not None or not self.schedule.needs_end
        self.timing: Timing = self.schedule.timing(begin, every, end if known else begin, total)
        self.layers = {layer.ref.name: layer for layer in scheduled_layers(model, pattern, filter_fn, include, exclude)}
        require_free(self.layers.values())
        self.step = 0
        self._kept: KeptMasks | None = None
        self._live: LiveWeights | None = None
        self._handles: list[RemovableHandle] = []
        self._gradients: dict[str, Tensor] = {}
        first = {name: self._first_mask(name, layer) for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            layer.set_mask(first[name], self.schedule.pattern(layer.pattern, 0, self.timing))

    @property
    def density(self) -> float:
        """Kept / all over the layers under the schedule, now."""
        masks = [layer.mask for layer in self.layers.values()]
        return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    def attach(self, optimizer: Optimizer, total: int | None = None) -> None:
        """Follow an optimiser from now on; dropped weights become zero in the model.

        Args:
            optimizer: over the parameters of this very model.
            total: steps of the whole training, where they were not known before.

        Raises:
            ModelError: it follows one already, this is no optimiser, it does not train one of the layers, another
                schedule changes one, or the schedule is live and the optimiser is L-BFGS.
            RecipeError: the schedule needs an end and there is none.
        """
        if self._handles:
            raise ModelError("These masks follow an optimiser already. Call remove() before they follow another one.")
        if not isinstance(optimizer, Optimizer):
            raise ModelError(f"Masks follow a torch.optim.Optimizer, got {type(optimizer).__name__}. Make one first.")
        require_free(self.layers.values())
        if self.schedule.live:
            require_one_gradient(optimizer)
        if self._total is None:
            self._total = total
        self.timing = self.schedule.timing(*self._asked, self._total)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, layer in self.layers.items():
            if id(layer.parameter) not in trained:
                raise ModelError(
                    f"The optimiser does not train {name}, whose mask is to change. Make it from the parameters of "
                    "this model (after `fully_shard` or `deepcopy`, not before), or leave the layer out with exclude=."
                )
        ours, others = self._masked()
        if self.schedule.live:
            self._live = LiveWeights(ours, optimizer, self.schedule.decay)
            self._kept = KeptMasks(others, optimizer)
        else:
            self._kept = KeptMasks([*ours, *others], optimizer, self._wants_gradients)
        # After theirs: what they do to weights has been done when the masks change.
        self._handles = [
            before_update(optimizer, self._before_update),
            optimizer.register_step_post_hook(self._after_step),
        ]
        mark(self.layers.values())
        if self._traffic is not None:
            self._traffic.whole = self._wants_gradients

    def finish(self) -> None:
        """End: masks that have not come to their pattern yet are solved now, and the hooks come off.

        Afterwards the model is as after `sparsify_`: zeros in `weight`, the mask beside it, ready for `pack_`. Calling
        it again does nothing.
        """
        if not self._handles:
            return
        late = {
            name: layer
            for name, layer in self.layers.items()
            if self.schedule.pattern(layer.pattern, self.step, self.timing) != layer.pattern
            or layer.pattern.check_mask(layer.mask)
        }
        if late:
            with self._all_values():
                for name, layer in late.items():
                    weight = layer.matrix(layer.parameter)
                    require_finite(weight, f"weight of {name}")
                    layer.set_mask(layer.prices.solve(weight.abs(), layer.pattern), layer.pattern)
            self._require_same_masks()
        if self._kept is not None:
            self._kept.apply()
        self.remove()

    def remove(self) -> None:
        """Take the hooks off; masks and sparse weights stay as they are, values behind the mask are forgotten."""
        if self._handles:
            unmark(self.layers.values())
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gradients.clear()
        for holder in (self._kept, self._live):
            if holder is not None:
                holder.remove()
        self._kept = self._live = None
        if self._traffic is not None:
            self._traffic.whole = never

    def __enter__(self) -> "SparseTraining":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.remove()

    def state_dict(self) -> dict[str, Any]:
        """What the model's and the optimiser's states do not hold: the step, values behind the mask, and prices.

        Tensors, numbers and texts only. Of a sharded model each process has its own.
        """
        prices = {name: layer.prices.columns for name, layer in self.layers.items()}
        hidden = {} if self._live is None else self._live.hidden()
        return {
            "settings": self._settings(),
            "step": self.step,
            "hidden": {name: values.clone() for name, values in hidden.items()},
            "prices": {name: columns.clone() for name, columns in prices.items() if columns is not None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a training stopped: after the model's state, which holds the masks, and then the optimiser's.

        Raises:
            DataError: the state is not whole, or belongs to another schedule, other layers or another seed; nothing
                was changed.
        """
        if self.schedule.live and self._live is None:
            raise DataError("The state of a live schedule is loaded after attach(optimizer). Attach first.")
        hidden = {} if self._live is None else self._live.hidden()
        shapes = {name: (layer.mask.shape[0], layer.mask.shape[1]) for name, layer in self.layers.items()}
        require_state(state, self._settings(), hidden, shapes)
        self.step = int(state["step"])
        for name, layer in self.layers.items():
            layer.prices.columns = state["prices"][name].clone() if name in state["prices"] else None
            layer.remember(self.schedule.pattern(layer.pattern, self.step, self.timing))
        for name, values in hidden.items():
            values.copy_(state["hidden"][name])
        if self._kept is not None:
            self._kept.apply()

    def _settings(self) -> dict[str, Any]:
        begin, every, end = self.timing.begin, self.timing.every, self.timing.end
        patterns = {name: str(layer.pattern) for name, layer in self.layers.items()}
        return {"schedule": repr(self.schedule), "timing": [begin, every, end], "seed": self._seed, "layers": patterns}

    def _first_mask(self, name: str, layer: ScheduledLayer) -> Tensor:
        rule = self.schedule.pattern(layer.pattern, 0, self.timing)
        mask = layer.ref.get_mask()
        dense = rule.density == 1
        if mask is not None and not dense and not rule.check_mask(mask):
            return mask
        weight = layer.matrix(layer.parameter)
        if dense:
            return torch.ones_like(weight, dtype=torch.bool)
        require_finite(weight, f"weight of {name}")
        if self.schedule.needs_masks:
            raise ModelError(
                f"{name} has no mask of {rule}, and the schedule {type(self.schedule).__name__} chooses none. "
                "Call sparsify_ first, or take the schedule 'one_shot'."
            )
        change = self._change(name, layer, weight, torch.ones_like(weight, dtype=torch.bool))
        return self.schedule.first(change)

    def _change(self, name: str, layer: ScheduledLayer, weight: Tensor, mask: Tensor) -> MaskChange:
        return MaskChange(
            name,
            weight,
            mask,
            self.schedule.pattern(layer.pattern, self.step, self.timing),
            self._gradients.get(name),
            self.step,
            self.timing,
            np.random.default_rng((self._seed, self.step, list(self.layers).index(name))),
            layer.prices,
        )

    def _masked(self) -> tuple[list[MaskedWeight], list[MaskedWeight]]:
        """The masked weights under the schedule, and those whose masks nobody changes."""
        own = {id(layer.parameter) for layer in self.layers.values()}
        every = masked_weights(self._model)
        return [each for each in every if id(each.parameter) in own], [e for e in every if id(e.parameter) not in own]

    def _wants_gradients(self) -> bool:
        """Whether the gradients of dropped weights are needed in the step under way."""
        if self.schedule.live:
            return True
        return self.schedule.needs_gradient and self.schedule.due(self.step + 1, self.timing)

    def _before_update(self) -> None:
        """Take the gradients that the schedule wants to see, then let the optimiser see the kept ones only."""
        if not self._wants_gradients():
            return
        if self.schedule.needs_gradient and self.schedule.due(self.step + 1, self.timing):
            for name, layer in self.layers.items():
                # A layer that took no part in this step has a gradient of zero.
                gradient = layer.parameter.grad
                none = torch.zeros_like(layer.mask, dtype=torch.float32)
                self._gradients[name] = none if gradient is None else layer.matrix(gradient).clone()
        if self._processes() > 1:
            self._require_dense_gradients()
        if self._kept is not None:
            for weight in self._kept.weights:
                weight.clear_gradient()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not was_skipped(optimizer):
            self.step += 1
            if self.schedule.due(self.step, self.timing):
                self._renew()
        self._gradients.clear()

    @torch.no_grad()
    def _renew(self) -> None:
        """New masks for all layers, by the weights as they are now."""
        with self._all_values():
            for name, layer in self.layers.items():
                weight = layer.matrix(layer.parameter)
                require_finite(weight, f"weight of {name}")
                change = self._change(name, layer, weight, layer.mask)
                layer.set_mask(self.schedule.checked(change), change.pattern)
        self._require_same_masks()
        if self._kept is not None:
            # Zeros at what has just been dropped, in moments too; grown weights start from moments of zero.
            self._kept.apply()

    def _all_values(self) -> AbstractContextManager[None]:
        return nullcontext() if self._live is None else self._live.shown()

    def _processes(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def _require_same_masks(self) -> None:
        if self._processes() > 1:
            group = dist.group.WORLD if self._traffic is None else self._traffic.group
            require_same_everywhere("Masks", (layer.mask for layer in self.layers.values()), group)

    def _require_dense_gradients(self) -> None:
        """Refuse to grow by gradients that a communication hook has left out."""
        missed = False
        for layer in self.layers.values():
            gradient, mask = layer.parameter.grad, layer.mask
            if gradient is None or bool(mask.all()):
                continue
            if is_distributed(gradient):
                return
            whole = layer.matrix(gradient)
            if bool(whole[~mask].any()):
                return
            missed |= bool(whole[mask].any())
        if missed:
            raise ModelError(_NO_DENSE_GRADIENTS)


def sparse_training_(
    model: nn.Module,
    optimizer: Optimizer,
    pattern: PlanLike | None = None,
    *,
    schedule: str | AbstractSchedule,
    every: int | None = None,
    begin: int = 0,
    end: int | None = None,
    total: int | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
    traffic: KeptGradients | None = None,
) -> SparseTraining:
    """Make the training of a model sparse: masks come and move by a schedule, step by step of the optimiser.

    Works with every `torch.optim.Optimizer` (plain, foreach, fused, with a closure; live schedules with those that run
    the closure once in a step), clipping, accumulated gradients, gradient scaling (skipped steps do not count), DDP and
    FSDP2 (after `fully_shard`).

    Args:
        model: its layers keep their classes, parameters and names; a buffer `weight_mask` comes beside each weight.
        optimizer: over the parameters of this very model.
        pattern: what masks obey at the end: a pattern or its text, a `Plan` or rules, as for `sparsify_`. None: the
            layers that are masked already, by the patterns of their masks. Masks that obey it already are where the
            training starts.
        schedule: a name in the registry `schedules` (`fixed`, `one_shot`, `gradual`, `periodic`, `sr_ste`, `set`,
            `rigl`), or a schedule of your own settings, for instance `RigL(fraction=0.2)`.
        every: steps from one change to the next; default the schedule's own.
        begin: layers are dense before this step.
        end: last step at which masks may change; default the schedule's share of `total` (three quarters for most).
        total: steps of the whole training; some schedules need it, or `end`.
        filter_fn, include, exclude: which layers take part, as for `sparsify_`.
        seed: of what is drawn at random.
        traffic: the second result of `data_parallel`, so that gradients of dropped weights travel when they are needed.

    Returns:
        The handle: `finish()` ends it; with `state_dict()` and `load_state_dict()` a resumed run ends with the same
        bits.

    Raises:
        ModelError: no layer takes part, the optimiser does not train one that does, another schedule changes one
            already, or the schedule is live and the optimiser is L-BFGS.
        PatternError, PlanError: a pattern does not fit.
        RecipeError: steps, seed or schedule are out of range.
        NumericError: a weight is NaN or infinite; names the layer.
    """
    training = SparseTraining(
        model,
        pattern,
        schedule=schedule,
        every=every,
        begin=begin,
        end=end,
        total=total,
        filter_fn=filter_fn,
        include=include,
        exclude=exclude,
        seed=seed,
        traffic=traffic,
    )
    training.attach(optimizer)
    return training
