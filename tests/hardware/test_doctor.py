"""The doctor says what is here, what it accelerates, and one verdict on a model, before any data."""

import json

import pytest
import torch
from torch import nn

from sparsewright.hardware import doctor
from sparsewright.hardware import this as this_module
from sparsewright.hardware.doctor import NOT_HERE, ONLY_SIZE, WORTH

QUICK = {"minutes": 0.001, "patterns": ["4x1@50%", "1:4x4", "dense int8", "4x1@50% int8"]}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    original = this_module.interleave
    monkeypatch.setattr(
        this_module, "interleave", lambda calls, **options: original(calls, **{**options, "rounds": (2, 2)})
    )


def test_every_pattern_is_measured_or_has_a_reason():
    found = doctor(**QUICK)
    assert all(row.speedups or row.reasons for row in found.accelerations)
    assert {row.pattern: row.kernel for row in found.accelerations}["dense int8"] == "int8_lane"
    assert found.kernels["int8_lane"] == "runs here"
    assert found.kernels["masked_dense"].startswith("only on request")
    assert "convolutions" in found.not_accelerated
    assert json.loads(json.dumps(found.to_data()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_what_one_would_bring():
    found = doctor(minutes=0.001, patterns=["4x1@50%"])
    for kernel in ("triton_few_tokens", "triton_tensor_core", "triton_lanes", "semi_structured"):
        assert "torch finds none on this machine" in found.kernels[kernel]
    assert "layout semi_structured" in found.not_accelerated["sparse tensor cores"]
    assert "Triton" in found.not_accelerated["GPU kernels"]


def test_a_model_gets_best_cases_bytes_and_one_verdict():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    found = doctor(model, **QUICK).model
    assert found.verdict in (WORTH, ONLY_SIZE, NOT_HERE)
    assert found.because
    assert {case.pattern for case in found.best_cases} == {"4x1@50%", "1:4x4", "dense int8", "4x1@50% int8"}
    for case in found.best_cases:
        assert 0 < case.size_share < 1
        assert case.size_bytes_fp16 < case.size_bytes
    sizes = {case.pattern: case.size_bytes for case in found.best_cases}
    assert sizes["4x1@50% int8"] < sizes["dense int8"] < sizes["4x1@50%"]
    for case in found.best_cases:
        assert all(1 <= value <= found.limit[label] + 1e-9 for label, value in case.speedups.items())
    assert "too small to gain" in found.no_gain["4"]


def test_a_model_without_layers_is_not_for_this_machine():
    found = doctor(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), batch=torch.randn(1, 3, 8, 8), **QUICK).model
    assert found.verdict == NOT_HERE
    assert found.because.startswith("no layer of this model can be sparse")
