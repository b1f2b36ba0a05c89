"""`y = x W^T + b` with a packed weight W."""

from .activations import Activation, check_activation
from .dispatch import check_tokens, dispatch_table, set_dispatch_table, which, why_not
from .linear import linear
from .missing import OnMissing, count_dense_run, dense_runs, forget_dense_runs, missing_choice, on_missing
from .operators import AbstractLinear, operators, register_operator
from .reference import reference_linear
from .threads import Sharing, set_sharing

__all__ = [
    "AbstractLinear",
    "Activation",
    "OnMissing",
    "Sharing",
    "check_activation",
    "check_tokens",
    "count_dense_run",
    "dense_runs",
    "dispatch_table",
    "forget_dense_runs",
    "linear",
    "missing_choice",
    "on_missing",
    "operators",
    "reference_linear",
    "register_operator",
    "set_dispatch_table",
    "set_sharing",
    "which",
    "why_not",
]
