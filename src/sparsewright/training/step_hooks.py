"""Right before and right after an optimiser's update, also where a closure runs forward and backward in the step."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def before_update(
    optimizer: Optimizer, work: Callable[[], None], forward: Callable[[], None] | None = None
) -> RemovableHandle:
    """Do `work` between the gradients and the update of every step.

    Args:
        optimizer: any.
        work: called once per step; with a closure, each time after it.
        forward: called before a closure runs the model, to undo what `work` did to the weights.
    """

    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # `args` begins with the optimiser itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            work()
            return None

        def wrapped() -> Any:
            if forward is not None:
                forward()
            loss = closure()
            work()
            return loss

        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    return optimizer.register_step_pre_hook(hook)


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether the step that has just run changed nothing: a gradient scaler told a fused optimiser of an overflow.

    Other optimisers are not called at all then.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def loss_scale(optimizer: Optimizer) -> float:
    """By how much gradients are still scaled in this step: fused optimisers may unscale them themselves."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)
