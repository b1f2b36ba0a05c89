"""Floor 2: how a masked weight is stored. One file per layout; importing this package registers them all."""

from . import bitmask, int8, masked, semi_structured, vector
from .base import VALUE_DTYPES, AbstractLayout, PackedWeight, layouts, storage_bytes
from .packing import infer_pattern, pack

__all__ = [
    "VALUE_DTYPES",
    "AbstractLayout",
    "PackedWeight",
    "bitmask",
    "infer_pattern",
    "int8",
    "layouts",
    "masked",
    "pack",
    "semi_structured",
    "storage_bytes",
    "vector",
]
