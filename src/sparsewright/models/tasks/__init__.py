"""Tasks: what a model is calibrated, recovered and judged on; one file each."""

from .base import (
    AbstractTask,
    AbstractTaskKind,
    Batch,
    PairedDifference,
    Quality,
    Split,
    first_tensor,
    paired_difference,
    tasks,
)
from .classification import TextClassification
from .digits import Digits
from .docstrings import DocstringRetrieval
from .images import ImageClassification
from .pairs import SentencePairs
from .text_lm import TextLM

__all__ = [
    "AbstractTask",
    "AbstractTaskKind",
    "Batch",
    "Digits",
    "DocstringRetrieval",
    "ImageClassification",
    "PairedDifference",
    "Quality",
    "SentencePairs",
    "Split",
    "TextClassification",
    "TextLM",
    "first_tensor",
    "paired_difference",
    "tasks",
]
