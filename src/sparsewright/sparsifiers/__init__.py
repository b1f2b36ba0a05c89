"""Floor 3: one file per method that removes weights; importing this package registers them all."""

from .base import AbstractSparsifier, Needs, Sparsified, sparsifiers

__all__ = ["AbstractSparsifier", "Needs", "Sparsified", "sparsifiers"]
