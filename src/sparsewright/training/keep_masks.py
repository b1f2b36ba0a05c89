"""`keep_masks_`: any torch optimiser trains a masked model, and the zeros stay zeros after every step.

Two kinds of hooks, both torch's own: gradients lose what the mask drops as soon as they are accumulated, so that
clipping, loss scaling and moments see the sparse gradient; and after every step the optimiser's weights are masked
again, whatever the optimiser did. Parameters, module classes and state_dict keys stay as they are, so copies,
checkpoints, torch.compile, DDP and FSDP2 see an ordinary model.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..core import ModelError, require_module
from .masked_weights import MaskedWeight, masked_weights, zero_dropped_


def never() -> bool:
    """No gradient of a dropped weight is wanted."""
    return False


@final
class KeptMasks:
    """Masks that an optimiser obeys, until `remove()`; also a context manager.

    Args:
        weights: masked weights; those that the optimiser trains count.
        optimizer: any.
        spare: asked after each backward; True leaves the gradients of dropped weights in `.grad`, for whoever clears
            them before the step.

    Attributes:
        weights: the masked weights that the optimiser trains.
    """

    def __init__(self, weights: list[MaskedWeight], optimizer: Optimizer, spare: Callable[[], bool] = never) -> None:
        self._spare = spare
        self.weights: list[MaskedWeight] = []
        self._optimizer, self._all, self._parameters = optimizer, weights, 0
        self._handles: list[RemovableHandle] = []
        self._cover()
        self._handles.append(optimizer.register_step_post_hook(self._after_step))
        self._handles.append(optimizer.register_load_state_dict_post_hook(self._after_loading))
        self.apply()

    def apply(self) -> None:
        """Put zeros at every dropped place of weights, gradients and optimiser moments now."""
        for weight in self.weights:
            weight.clear()
        self._clear_moments()

    def remove(self) -> None:
        """Take the hooks off; weights, gradients and moments stay as they are. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> "KeptMasks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _cover(self) -> bool:
        """Take in the masked weights that the optimizer trains by now; whether there are new ones."""
        groups = [group["params"] for group in self._optimizer.param_groups]
        count = sum(map(len, groups))
        if count == self._parameters:
            return False
        self._parameters = count
        trained = {id(parameter) for group in groups for parameter in group}
        known = {id(weight.parameter) for weight in self.weights}
        new = [each for each in self._all if id(each.parameter) in trained and id(each.parameter) not in known]
        self.weights += new
        self._handles += [
            weight.parameter.register_post_accumulate_grad_hook(_cleared_by(weight, self._spare))
            for weight in new
            if weight.parameter.requires_grad
        ]
        return bool(new)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._cover():  # a parameter group was added
            self.apply()
        for weight in self.weights:
            zero_dropped_(weight.parameter.detach(), weight.kept)

    def _after_loading(self, optimizer: Optimizer) -> None:
        self._clear_moments()

    def _clear_moments(self) -> None:
        """Moments from before the mask would go on moving dropped weights."""
        for weight in self.weights:
            for moment in self._optimizer.state.get(weight.parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == weight.parameter.shape:
                    zero_dropped_(moment, weight.kept)


def _cleared_by(weight: MaskedWeight, spare: Callable[[], bool]) -> Any:
    def clear(parameter: Tensor) -> None:
        if not spare():
            weight.clear_gradient()

    return clear


def keep_masks_(model: nn.Module, optimizer: Optimizer) -> KeptMasks:
    """Make an optimiser obey the masks of a sparsified model.

    Works with every `torch.optim.Optimizer` (plain, foreach and fused), clipping, loss scaling, accumulated gradients,
    learning-rate schedules, torch.compile of the model, DDP (before or after wrapping) and FSDP2 (after `fully_shard`).
    A mask that changes later counts from then on. Bytes: none beside the masks; time: one pass over each masked
    weight's gradient, one over the weight.

    Args:
        model: after `sparsify_`: zeros in `weight`, and `weight_mask` beside it.
        optimizer: over the parameters of this very model (a copy of the model has its own). Moments it holds already
            are masked now, and again whenever a state is loaded into it.

    Returns:
        A handle: `remove()` ends it, `with` ends it at the end of the block.

    Raises:
        ModelError: no layer is masked, a masked layer is packed, or the optimiser trains none of the masked weights.
    """
    require_module(model)
    if not isinstance(optimizer, Optimizer):
        raise ModelError(f"keep_masks_ takes a torch.optim.Optimizer, got {type(optimizer).__name__}. Make one first.")
    weights = masked_weights(model)
    if not weights:
        raise ModelError("No layer of this model has a mask to keep. Call sparsify_ first.")
    kept = KeptMasks(weights, optimizer)
    if not kept.weights:
        kept.remove()
        raise ModelError(
            f"The optimiser trains none of the {len(weights)} masked weights of this model. Make it from this model's "
            "parameters, after `fully_shard`, `deepcopy` or `load_state_dict(assign=True)`, not before."
        )
    return kept
