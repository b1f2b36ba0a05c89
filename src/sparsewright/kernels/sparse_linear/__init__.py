"""`y = x W^T + b` with a packed weight W."""

from .dispatch import dispatch_table, set_dispatch_table, which, why_not
from .linear import linear
from .reference import reference_linear
from .threads import Sharing, set_sharing

__all__ = [
    "Sharing",
    "dispatch_table",
    "linear",
    "reference_linear",
    "set_dispatch_table",
    "set_sharing",
    "which",
    "why_not",
]
