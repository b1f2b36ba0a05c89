"""A profile travels as a file, is interpolated with care, and anything else in its place is refused."""

import json
import math

import pytest

from sparsewright.core import NM, Dense, FileError, ProfileError, parse_pattern
from sparsewright.hardware import CostRow, FileTarget, Profile, load_target
from sparsewright.testing.targets import TargetContract


def row(pattern="2:4", tokens=64, seconds=1.0, dense=2.0, value_dtype="fp32", shape=(64, 64)):
    return CostRow(shape, pattern, value_dtype, tokens, seconds, dense, seconds, seconds, 5)


def make(*rows):
    return Profile({"cpu": "board"}, "f" * 64, "torch 1", "2026-01-01T00:00:00+00:00", 1, tuple(rows))


PROFILE = make(
    row("dense", 8, 1.0, 1.0), row("dense", 512, 50.0, 50.0), row("2:4", 8, 0.6, 1.0), row("2:4", 512, 40.0, 80.0)
)


class TestFileTargetMeetsTheContract(TargetContract):
    @pytest.fixture
    def target(self):
        return FileTarget(PROFILE)


def test_seconds_are_told_by_the_dense_row_of_the_same_shape():
    cost = PROFILE.cost((64, 64), NM(2, 4), 512)
    assert cost.ratio == pytest.approx(0.5)
    assert cost.seconds == pytest.approx(25.0)
    assert cost.source == "measured"


def test_between_measured_tokens_the_ratio_is_between_the_measured_ratios():
    cost = PROFILE.cost((64, 64), NM(2, 4), 64)
    assert cost.source == "interpolated"
    assert cost.ratio == pytest.approx(0.55)
    assert 1.0 < cost.dense_seconds < 50.0


def test_beyond_the_largest_measurement_time_grows_in_proportion():
    assert PROFILE.cost((64, 64), NM(2, 4), 1024).seconds == pytest.approx(50.0)


def test_below_the_smallest_measurement_is_an_error():
    with pytest.raises(ProfileError, match="from 8 tokens upwards"):
        PROFILE.cost((64, 64), NM(2, 4), 1)


def test_what_was_not_measured_says_what_was_and_how_to_measure():
    with pytest.raises(ProfileError, match=r"lacks 1:4.*2:4 \(fp32\).*sparsewright profile"):
        PROFILE.cost((64, 64), NM(1, 4), 64)
    with pytest.raises(ProfileError, match=r"lacks the layer shape \(8, 8\)"):
        PROFILE.cost((8, 8), NM(2, 4), 64)


def test_a_dense_layer_stored_as_fp16_takes_the_time_of_dense():
    assert PROFILE.cost((64, 64), Dense(), 8, "fp16") == PROFILE.cost((64, 64), Dense(), 8)


def test_newer_rows_replace_older_ones():
    merged = PROFILE.merged([row("2:4", 8, 0.1, 1.0)])
    assert merged.cost((64, 64), NM(2, 4), 8).ratio == pytest.approx(0.1)
    assert len(merged.rows) == len(PROFILE.rows)


def test_a_profile_survives_its_file(tmp_path):
    path = tmp_path / "board.json"
    PROFILE.save(path)
    assert Profile.load(path) == PROFILE
    target = load_target(str(path))
    assert isinstance(target, FileTarget)
    assert target.layer_cost((64, 64), parse_pattern("2:4"), 8).ratio == pytest.approx(0.6)


def test_an_old_profile_is_refused_when_its_age_matters(tmp_path):
    path = tmp_path / "board.json"
    make(row("dense")).save(path)
    old = json.loads(path.read_text())
    old["created"] = "2001-01-01T00:00:00+00:00"
    path.write_text(json.dumps(old))
    assert Profile.load(path).created.startswith("2001")
    with pytest.raises(ProfileError, match="more than 90 days ago"):
        Profile.load(path, max_age_days=90)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kind": "something"},
        {"source": "guessed"},
        {"extra": 1},
        {"rows": "x"},
        {"created": "yesterday"},
        {"machine": []},
        {"threads": 0},
        {"threads": True},
        {"versions": 5},
    ],
)
def test_anything_else_in_a_profile_is_refused(change):
    with pytest.raises(ProfileError):
        Profile.from_data({**PROFILE.to_data(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": -1},
        {"seconds": math.inf},
        {"seconds": "1"},
        {"dense_seconds": 0},
        {"shape": [1]},
        {"shape": [0, 4]},
        {"shape": [1 << 40, 4]},
        {"pattern": "nonsense"},
        {"value_dtype": "fp8"},
        {"tokens": 1.5},
        {"extra": 1},
    ],
)
def test_a_malformed_row_is_refused_with_its_number(change):
    data = PROFILE.to_data()
    data["rows"][2] = {**data["rows"][2], **change}
    with pytest.raises(ProfileError, match="row 2"):
        Profile.from_data(data)


def test_an_unknown_target_is_named_with_a_suggestion():
    with pytest.raises(ProfileError, match="Did you mean 'this'"):
        load_target("thiss")


def test_a_missing_profile_file_is_a_file_error(tmp_path):
    with pytest.raises(FileError):
        load_target(str(tmp_path / "none.json"))
