"""What a saved state of a sparse training must look like, checked as a whole before anything is loaded from it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..core import DataError, is_whole

_KEYS = {"settings", "step", "hidden", "prices"}
_TAKE = "Pass what state_dict() gave, whole."


def require_state(
    state: Any, settings: Mapping[str, Any], hidden: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Raise unless `SparseTraining.state_dict()` of this very training can have given the state.

    Args:
        state: anything.
        settings: of the training that is to go on.
        hidden: parameter name -> its values behind the mask; empty for schedules without live weights.
        shapes: layer name -> `(out, in)`.

    Raises:
        DataError: no mapping, other keys, another training, a step below 0, or names and shapes of other weights.
    """
    if not isinstance(state, Mapping) or set(state) != _KEYS:
        came = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise DataError(f"The state of a sparse training is a mapping with {sorted(_KEYS)}, got {came}. {_TAKE}")
    if state["settings"] != settings:
        raise DataError(
            f"This state belongs to another sparse training ({state['settings']}), this one is {settings}. "
            "Take the same pattern, schedule, steps and seed as before."
        )
    if not is_whole(state["step"], 0):
        raise DataError(
            f"The step of a sparse training is a whole number of at least 0, got {state['step']!r}. {_TAKE}"
        )
    for part in ("hidden", "prices"):
        came = state[part]
        if not isinstance(came, Mapping):
            raise DataError(
                f"{part!r} of a sparse training's state maps names to tensors, got {type(came).__name__}. {_TAKE}"
            )
    odd = sorted(map(str, state["hidden"].keys() ^ hidden.keys())) + [
        name for name, own in hidden.items() if not _is_like(state["hidden"].get(name), tuple(own.shape))
    ]
    prices = state["prices"]
    odd += [str(name) for name, own in prices.items() if name not in shapes or not _fits(own, shapes[name])]
    if odd:
        raise DataError(
            f"Values in the state of a sparse training have the names and shapes of this model's, and those of "
            f"{odd[0]!r} have not. {_TAKE}"
        )


def _is_like(tensor: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tuple(tensor.shape) == shape


def _fits(prices: Any, shape: tuple[int, int]) -> bool:
    """Whether these are column prices, `(tile rows, tile columns, m)`, that cover a layer; m may be any."""
    if not isinstance(prices, Tensor) or not prices.is_floating_point() or prices.ndim != 3:
        return False
    down, along, m = prices.shape
    return min(down, along, m) > 0 and shape[0] % (down * m) == 0 and shape[1] % (along * m) == 0
