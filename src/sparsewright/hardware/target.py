"""Targets: a machine and what layers cost on it, measured or modelled."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final, get_args

from .. import layouts
from ..core import AbstractPattern, Dense, ProfileError, Registry, ValueType, suggest
from .profile import Cost, Profile

Shape = tuple[int, int]


class AbstractTarget(ABC):
    """A hardware description with a cost model."""

    about: str
    """One line for `sparsewright targets`."""

    @abstractmethod
    def layer_cost(self, shape: Shape, pattern: AbstractPattern, tokens: int, value_dtype: ValueType = "fp32") -> Cost:
        """Cost of one layer.

        Args:
            shape: `(out, in)`.
            pattern: where zeros are; `Dense()` with `int8` is the dense int8 layer.
            tokens: rows of the input.
            value_dtype: how the kept values are stored.

        Raises:
            ProfileError: the target does not know this choice and cannot measure it.
        """

    @abstractmethod
    def can_run(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        """Reasons why the target cannot run this pattern at this shape; empty if it can."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The machine as plain data for a report."""

    def dense_cost(self, shape: Shape, tokens: int) -> Cost:
        """Cost of torch's dense float32 linear."""
        return self.layer_cost(shape, Dense(), tokens)

    def prepare(  # noqa: B027 (a target that only looks up has nothing to get ready)
        self,
        shapes: Sequence[Shape],
        patterns: Sequence[AbstractPattern],
        tokens: Sequence[int],
        value_dtypes: Sequence[ValueType] = ("fp32",),
        minutes: float | None = None,
    ) -> None:
        """Get ready for many look-ups at once. A target that measures does all of it here, side by side."""


targets: Registry[AbstractTarget] = Registry("targets", AbstractTarget)


@final
class FileTarget(AbstractTarget):
    """Another machine, known by the profile that was measured on it.

    Args:
        profile: what `Profile.load` read.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.about = f"profile of {profile.machine.get('cpu', 'unknown machine')}, {profile.created}"

    def layer_cost(self, shape: Shape, pattern: AbstractPattern, tokens: int, value_dtype: ValueType = "fp32") -> Cost:
        return self.profile.cost(shape, pattern, tokens, value_dtype)

    def can_run(self, pattern: AbstractPattern, shape: Shape) -> list[str]:
        if isinstance(pattern, Dense):
            return []
        reasons = why_not_packed(pattern, shape)
        if not reasons and not any(self.profile.tokens(shape, pattern, kind) for kind in get_args(ValueType)):
            reasons = [f"the profile holds no measurement of {pattern} at {shape[0]}x{shape[1]}"]
        return reasons

    def describe(self) -> dict[str, Any]:
        return {**self.profile.machine, "created": self.profile.created, "threads": self.profile.threads}


def why_not_packed(pattern: AbstractPattern, shape: Shape) -> list[str]:
    """Reasons why no packed layout for speed takes this pattern at this shape."""
    if isinstance(pattern, Dense):
        return []
    return pattern.why_not(shape) or layouts.layouts.get("vector").why_not(pattern, shape)


def load_target(target: "str | PathLike[str] | AbstractTarget", max_age_days: float | None = None) -> AbstractTarget:
    """A target by name (`this`) or by profile file (`board.json`); a target passes through.

    Raises:
        ProfileError: neither a known name nor a profile file, or the file is malformed or older than `max_age_days`.
        FileError: the file cannot be read.
    """
    if isinstance(target, AbstractTarget):
        return target
    text = str(target)
    if text.endswith(".json") or Path(text).is_file():
        return FileTarget(Profile.load(text, max_age_days))
    if text not in targets.names():
        raise ProfileError(
            f"{text!r} is no target: neither a registered name nor a profile file ending in .json. "
            f"{suggest(text, targets.names())}"
        )
    return targets.get(text)
