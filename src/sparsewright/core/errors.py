"""Errors that a user can act on: the rule, what came, what to do.

The command line turns every `SparsewrightError` into one line and exit code 2; anything else is a fault of ours
and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches

# A thousand model names are no sentence.
_MOST_NAMES = 30


class SparsewrightError(Exception):
    """Base of every error that reports a user's mistake or a limit of the machine."""


class PatternError(SparsewrightError):
    """A pattern text is not one of the known forms, or a pattern does not fit a shape."""


class PlanError(SparsewrightError):
    """A plan or its rules do not match the model's layers."""


class RecipeError(SparsewrightError):
    """A recipe has an unknown key, a wrong type, or asks for what cannot be had together."""


class ModelError(SparsewrightError):
    """A model cannot be loaded, or has no layer that could be sparse."""


class DataError(SparsewrightError):
    """Data are empty, of a wrong form, or read before their time (the test split)."""


class MachineError(SparsewrightError):
    """The environment asks for what this machine cannot do, such as an instruction set that it does not have."""


class NumericError(SparsewrightError):
    """A NaN or an infinity where numbers must be finite."""


class KernelError(SparsewrightError):
    """No kernel is able to run the operation as asked."""


class LayoutError(SparsewrightError):
    """A weight cannot be stored in the layout as asked."""


class BundleError(SparsewrightError):
    """A file is truncated, corrupt, hostile, or of a version this release does not read."""


class ProfileError(SparsewrightError):
    """A profile is missing, stale, or belongs to another machine."""


class BudgetError(SparsewrightError):
    """No plan fits the budget; the message names the tightest value that can be had."""


class FileError(SparsewrightError):
    """A file or folder cannot be read or written: missing, full disk, no permission."""


class MissingPackageError(SparsewrightError):
    """An optional package is not installed."""


def suggest(word: str, known: Iterable[str]) -> str:
    """End of an error message: the nearest known word, or all of them (the first ones of many) when none is near."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"Known: {', '.join(names[:_MOST_NAMES]) or 'none'}{more}."
