"""The step behind `sparsewright export`: a bundle or a model source becomes an ONNX file."""

from pathlib import Path

from torch import nn

from ..bundle import OnnxFile, export_onnx, inspect, load
from ..core import ModelError
from ..hardware import random_batch
from ..models import load_model


def export_to(
    subject: str, out: str | Path, *, model: str | None = None, length: int = 64, check: bool = True
) -> OnnxFile:
    """Write a bundle, or a model, as ONNX; items and tokens stay open.

    Args:
        subject: a bundle file or a model source.
        out: the file to write.
        model: source of the architecture, where only its own code can build it; default what the bundle names.
        length: tokens of the example, where the model takes tokens.
        check: compare onnxruntime's answer to the example with torch's first.

    Raises:
        ModelError: nothing tells how the model is built, or what input it takes.
        BundleError: the bundle is damaged, or onnxruntime answers otherwise than torch.
    """
    ours = _model(subject, model).eval()
    return export_onnx(ours, out, random_batch(ours, 2, length), check=check)


def _model(subject: str, source: str | None) -> nn.Module:
    if not Path(subject).is_file():
        return load_model(subject).model
    told = inspect(subject).manifest.model
    if told.library != "torch":
        return load(subject)
    if (source or told.source) is None:
        raise ModelError(f"{subject} holds a model that only its own code can build. Pass --model SOURCE.")
    return load(subject, model=load_model(source or told.source or "").model)
