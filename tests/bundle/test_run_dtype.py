"""Kept values may be stored in half precision and widened once at load."""

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.core import BundleError
from sparsewright.nn import SparseTensor


def packed_linear() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    sw.sparsify_(model, "2:4x4")
    sw.pack_(model, plan=None, force=True)
    return model


def test_values_stored_as_fp16_run_as_they_were_packed(tmp_path: Path) -> None:
    model = packed_linear()
    sw.save(model, tmp_path / "half.safetensors", value_dtype="fp16")
    sw.save(model, tmp_path / "full.safetensors")
    loaded = sw.load(tmp_path / "half.safetensors", model=nn.Sequential(nn.Linear(64, 32)))
    weight = loaded[0].weight
    assert isinstance(weight, SparseTensor)
    assert weight.packed.value_dtype == torch.float32
    original = model[0].weight.packed.unpack()  # type: ignore[union-attr]
    assert torch.equal(weight.packed.unpack(), original.half().float())
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[1] - sizes[0] >= 64 * 32 // 2 * 2 - 64


def test_values_beyond_half_precision_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    with torch.no_grad():
        model[0].weight.fill_(1e6)
    sw.sparsify_(model, "2:4")
    sw.pack_(model, force=True)
    with pytest.raises(sw.SparsewrightError, match="beyond the range"):
        sw.save(model, tmp_path / "m.safetensors", value_dtype="fp16")
    with pytest.raises(BundleError, match="stored as"):
        sw.save(model, tmp_path / "m.safetensors", value_dtype="int8")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
