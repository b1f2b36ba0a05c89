"""Measuring a model: everyone in one run, rivals that answer as the dense model does, and reasons instead of gaps."""

import copy
import json

import pytest
import torch
from torch import nn

from sparsewright.core import DataError, ModelError, ProfileError, SparsewrightError
from sparsewright.hardware import (
    PackageCounters,
    build_rivals,
    cold_start,
    measure,
    pack_,
    package_counters,
    random_batch,
    weight_bytes,
)
from sparsewright.models import sparsify_

BATCH = (torch.randn(3, 32),)


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()


@pytest.fixture
def ours(dense):
    packed = copy.deepcopy(dense)
    sparsify_(packed, "2:4", method="magnitude")
    pack_(packed, force=True)
    return packed


def quick(model, rivals=None, **options):
    return measure(model, BATCH, rivals, seconds=0, rounds=(3, 3), **options)


def test_ours_stands_beside_dense_with_paired_ratios(dense, ours):
    found = quick(ours, dense=dense)
    assert [row.name for row in found.rows] == ["torch fp32", "ours"]
    assert found.row("torch fp32").speedup == 1.0
    low, high = found.row("ours").speedup_interval
    assert low <= found.row("ours").speedup <= high
    assert found.row("ours").p50_s <= found.row("ours").p99_s
    assert found.row("ours").throughput_per_s == pytest.approx(3 / found.row("ours").p50_s)


def test_the_measurement_is_plain_data(dense):
    assert json.loads(json.dumps(quick(dense, ["fp16 file"]).to_data()))["items"] == 3


def test_rivals_answer_in_the_dense_models_form(dense, tmp_path):
    rivals = build_rivals(dense, BATCH, ["torch dynamic int8", "fp16 file"], folder=tmp_path)
    for rival in rivals:
        answer = rival.model(*BATCH)
        assert answer.shape == (3, 16)
        assert torch.allclose(answer, dense(*BATCH), atol=0.05)
    assert rivals[1].file_bytes == weight_bytes(dense) // 2


def test_a_rival_that_cannot_be_built_says_why(dense, monkeypatch):
    from sparsewright.hardware import rivals

    def refuse(*arguments):
        raise RuntimeError("no engine\nmore lines")

    monkeypatch.setattr(rivals, "BUILDERS", {"torch dynamic int8": refuse})
    row = quick(dense, ["torch dynamic int8"]).row("torch dynamic int8")
    assert row.p50_s is None
    assert row.reason == "not measured: it could not be built (no engine)"


def test_an_unknown_rival_is_an_error_with_a_suggestion(dense, tmp_path):
    with pytest.raises(ModelError, match="Did you mean 'onnxruntime fp32'"):
        build_rivals(dense, BATCH, ["onnxruntime fp3"], folder=tmp_path)


def test_a_packed_model_needs_its_dense_one_for_rivals(ours):
    with pytest.raises(ModelError, match="Pass dense="):
        quick(ours, "all")


@pytest.mark.slow
def test_onnxruntime_rivals_take_other_batch_sizes_than_the_exported_one(dense, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rivals = build_rivals(dense, BATCH, ["onnxruntime fp32", "onnxruntime dynamic int8"], folder=tmp_path)
    assert [rival.reason for rival in rivals] == ["", ""]
    x = torch.randn(7, 32)
    torch.testing.assert_close(rivals[0].model(x), dense(x), rtol=1e-4, atol=1e-5)
    assert (rivals[1].model(x) - dense(x)).abs().max() < 0.1
    assert rivals[1].file_bytes < rivals[0].file_bytes


def test_a_fresh_process_tells_load_time_and_peak_memory(tmp_path):
    found = cold_start("torch.nn:Identity", "unused", {"input": torch.randn(2, 4)})
    assert 0 < found.load_s < found.total_s
    assert found.peak_rss_bytes > 10_000_000


def test_a_fresh_process_that_fails_is_one_sentence():
    with pytest.raises(ModelError, match=r"could not load 'x' through torch.nn:Missing"):
        cold_start("torch.nn:Missing", "x", {"input": torch.randn(2, 4)})


def test_energy_counters_wrap_and_only_packages_count(tmp_path):
    for name, start in (("intel-rapl:0", 900), ("intel-rapl:0:1", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(start))
        (tmp_path / name / "max_energy_range_uj").write_text("1000")
    counters = package_counters(tmp_path)
    assert isinstance(counters, PackageCounters)
    assert [zone.name for zone in counters.zones] == ["intel-rapl:0"]
    assert counters.joules((900,), (100,)) == pytest.approx(200e-6)


def test_without_counters_there_is_no_energy_figure(tmp_path):
    assert package_counters(tmp_path / "none") is None


def test_random_batches_follow_the_models_configuration():
    class Config:
        vocab_size, max_position_embeddings = 50, 16

    text = nn.Linear(4, 4)
    text.config = Config()
    batch = random_batch(text, 3, length=64)
    assert batch["input_ids"].shape == (3, 16)
    assert int(batch["input_ids"].max()) < 50
    (plain,) = random_batch(nn.Linear(7, 2), 3)
    assert plain.shape == (3, 7)
    with pytest.raises(ModelError, match="Pass batch="):
        random_batch(nn.ReLU(), 1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"seconds": -1}, "Timing takes a number of seconds, 0 (the least rounds) or more, got -1."),
        ({"seconds": float("nan")}, "Timing takes a number of seconds, 0 (the least rounds) or more, got nan."),
        ({"seconds": "a"}, "Timing takes a number of seconds, 0 (the least rounds) or more, got 'a'."),
        ({"rounds": 5}, "Rounds are the least and the most samples, two whole numbers from 1, got 5."),
        ({"rounds": (0, 1)}, "Rounds are the least and the most samples, two whole numbers from 1, got (0, 1)."),
        ({"rounds": (3, 1)}, "Rounds are the least and the most samples, so the second is no smaller, got (3, 1)."),
        ({"threads": 0}, "Timing needs at least one thread, got 0."),
        ({"threads": 1.5}, "Timing needs at least one thread, got 1.5."),
        ({"energy_seconds": -2}, "A window for a power meter takes seconds, 0 (none) or more, got -2."),
    ],
)
def test_what_is_no_time_is_refused_before_anything_runs(wrong, sentence):
    class Untouched(nn.Module):
        def forward(self, x):
            raise AssertionError("it ran")

    with pytest.raises(ProfileError) as said:
        measure(Untouched(), BATCH, "all", **wrong)
    assert str(said.value) == sentence


def test_only_modules_are_measured():
    with pytest.raises(ModelError, match=r"A model is a torch\.nn\.Module, got str"):
        measure("model", BATCH)


@pytest.mark.parametrize(
    "batch", [None, "text", torch.randn(3, 31), {"y": torch.randn(3, 32)}], ids=["none", "text", "narrow", "name"]
)
def test_a_batch_that_the_model_does_not_take_is_one_sentence(dense, ours, batch):
    with pytest.raises(DataError, match="one input that it takes"):
        measure(dense, batch)
    with pytest.raises(SparsewrightError, match=r"one input that it takes|takes x of shape \(\.\.\., 32\), got"):
        measure(ours, batch)
