"""Tasks: what a model is calibrated, recovered and judged on; one file each."""

from .base import (
    AbstractTask,
    AbstractTaskKind,
    Batch,
    PairedDifference,
    Quality,
    Split,
    evaluating,
    paired_difference,
    tasks,
)
from .docstrings import DocstringRetrieval

__all__ = [
    "AbstractTask",
    "AbstractTaskKind",
    "Batch",
    "DocstringRetrieval",
    "PairedDifference",
    "Quality",
    "Split",
    "evaluating",
    "paired_difference",
    "tasks",
]
