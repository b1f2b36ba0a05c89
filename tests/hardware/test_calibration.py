"""Calibrated dispatch: measured, kept, applied; results never change by it."""

import json
import math

import pytest
import torch

from sparsewright import hardware
from sparsewright.core import DispatchTable, FileError, ProfileError
from sparsewright.hardware.calibrate import Calibration, apply_calibration, ensure_calibrated
from sparsewright.kernels import Sharing, dispatch_table, linear, set_dispatch_table, set_sharing
from sparsewright.layouts import pack


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path))
    yield tmp_path
    set_dispatch_table(None)
    set_sharing(None)


def test_every_group_and_batch_gets_a_preference_and_the_next_process_finds_it(own_cache):
    found = hardware.calibrate(seconds=0.1, threads=1)
    assert found.sharing is None
    for group in (4, 8, 16):
        for tokens in (2, 3, 17, 100, 5000):
            for in_ in (64, 4096):
                for density in (0.05, 0.9):
                    assert set(found.table.prefer("sparse_linear", group, tokens, in_, density)) == {
                        "token_lane",
                        "row_lane",
                    }
    assert found.table.prefer("sparse_linear", 4, 1, 64, 0.5) == ()
    set_dispatch_table(None)
    assert apply_calibration() == found
    assert dispatch_table().entries[: len(found.table.entries)] == found.table.entries


def test_sharing_is_measured_where_there_are_threads(own_cache):
    sharing = hardware.calibrate(seconds=0.1, threads=2).sharing
    assert sharing is not None
    assert 0 < sharing.serial_s <= 400e-6
    assert sharing.multiply_adds_per_s > 1e8
    assert sharing.read_bytes_per_s > 1e8


def test_results_keep_their_bits_whatever_the_table_says():
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(256) % 3 == 0).expand(96, 256)
    packed = pack(weight, mask, pattern="16x1@40%")
    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(1))
    results = []
    for name in ("token_lane", "row_lane"):
        data = [{"op": "sparse_linear", "kernels": [name], "group": None}]
        ranges = {"tokens": [0, None], "in_": [0, None], "density": [0, None]}
        set_dispatch_table(DispatchTable.from_data([{**data[0], **ranges}]))
        results.append(linear(x, packed))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"kind": "sparsewright calibration", "table": 3}',
        "\x00\x01",
        '{"kind": null}',
        "[" * 100000,
        '{"kind": "sparsewright calibration", "sharing": {"serial_s": 1' + 400 * "0" + "}}",
    ],
    ids=lambda text: text[:12],
)
def test_a_damaged_file_is_as_good_as_none(own_cache, text):
    hardware.calibrate(seconds=0.05, threads=1)
    set_dispatch_table(None)
    (path,) = own_cache.glob("dispatch-*.json")
    path.write_text(text)
    assert apply_calibration() is None


def test_what_another_machine_or_version_measured_is_not_applied(own_cache):
    hardware.calibrate(seconds=0.05, threads=1)
    (path,) = own_cache.glob("dispatch-*.json")
    for key in ("fingerprint", "versions"):
        data = json.loads(path.read_text())
        data[key] = "another"
        path.write_text(json.dumps(data))
        assert apply_calibration() is None


def test_rates_that_are_no_rates_are_refused():
    good = Calibration(DispatchTable(), Sharing(), "f", "v").to_data()
    assert Calibration.from_data(good).sharing == Sharing()
    for wrong in (0.0, -1.0, math.inf, math.nan):
        bad = {**good, "sharing": {**good["sharing"], "serial_s": wrong}}
        with pytest.raises(ProfileError, match="malformed"):
            Calibration.from_data(bad)


def test_a_calibration_that_cannot_be_kept_is_in_use_all_the_same(own_cache, monkeypatch):
    (own_cache / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(own_cache / "file"))
    built_in = dispatch_table().entries
    ensure_calibrated(None)
    assert len(dispatch_table().entries) > len(built_in)
    with pytest.raises(FileError):
        hardware.calibrate(seconds=0.1, threads=1)
