"""Floor 7: the bundle: one safetensors file with a manifest; save, load, inspect, verify."""

from .inspection import BundleInfo, BundleRow, inspect
from .load import load
from .manifest import Level, Manifest, ModelSource, PackedLayer, read_manifest
from .onnx import OnnxFile, export_onnx
from .reader import BundleReader
from .save import save
from .transformers import register_transformers
from .verification import VerifyReport, verify

__all__ = [
    "BundleInfo",
    "BundleReader",
    "BundleRow",
    "Level",
    "Manifest",
    "ModelSource",
    "OnnxFile",
    "PackedLayer",
    "VerifyReport",
    "export_onnx",
    "inspect",
    "load",
    "read_manifest",
    "register_transformers",
    "save",
    "verify",
]
