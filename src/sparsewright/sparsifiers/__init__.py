"""Floor 3: one file per method that removes weights; importing this package registers them all."""

from . import alps, auto, learned, magnitude, sparsegpt, wanda
from .base import AbstractSparsifier, Needs, Sparsified, sparsifiers
from .gram import factors_used_once, reconstruction_error
from .reconstruct import reconstruct

__all__ = [
    "AbstractSparsifier",
    "Needs",
    "Sparsified",
    "alps",
    "auto",
    "factors_used_once",
    "learned",
    "magnitude",
    "reconstruct",
    "reconstruction_error",
    "sparsegpt",
    "sparsifiers",
    "wanda",
]
