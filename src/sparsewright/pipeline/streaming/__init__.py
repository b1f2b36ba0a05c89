"""Models larger than memory: blocks are streamed from disk, sparsified and written back, one at a time."""

from . import local_engine, ray_engine
from .block_by_block import sparsify_file
from .engine import AbstractEngine, LayerAnswer, LayerTask, engines

__all__ = ["AbstractEngine", "LayerAnswer", "LayerTask", "engines", "local_engine", "ray_engine", "sparsify_file"]
