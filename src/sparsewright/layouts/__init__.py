"""Floor 2: how a masked weight is stored. One file per layout; importing this package registers them all."""

from . import bitmask, int8, masked, vector
from .base import VALUE_DTYPES, AbstractLayout, PackedWeight, layouts, storage_bytes
from .packing import infer_pattern, pack
from .plain import AbstractPlainLayout

__all__ = [
    "VALUE_DTYPES",
    "AbstractLayout",
    "AbstractPlainLayout",
    "PackedWeight",
    "bitmask",
    "infer_pattern",
    "int8",
    "layouts",
    "masked",
    "pack",
    "storage_bytes",
    "vector",
]
