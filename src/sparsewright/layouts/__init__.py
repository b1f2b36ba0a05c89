"""Floor 2: how a masked weight is stored. One file per layout; importing this package registers them all."""

from . import bitmask, int8, int8_weights, masked, nmg, semi_structured, vector
from .base import VALUE_DTYPES, AbstractLayout, PackedWeight, layouts, storage_bytes
from .inference import infer_pattern, recognise
from .packing import choose_layout, float_layout, pack
from .plain import AbstractPlainLayout

__all__ = [
    "VALUE_DTYPES",
    "AbstractLayout",
    "AbstractPlainLayout",
    "PackedWeight",
    "bitmask",
    "choose_layout",
    "float_layout",
    "infer_pattern",
    "int8",
    "int8_weights",
    "layouts",
    "masked",
    "nmg",
    "pack",
    "recognise",
    "semi_structured",
    "storage_bytes",
    "vector",
]
