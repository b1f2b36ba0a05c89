"""The target `this` measures what it does not know, keeps it, and never mixes machines or versions."""

import dataclasses

import pytest

from sparsewright.core import NM, Block, Dense, LayoutError, ProfileError, SparsewrightError, parse_pattern
from sparsewright.hardware import CostStore, Profile, ThisTarget, load_target, operands, profile, targets, this_machine
from sparsewright.hardware import this as this_module
from sparsewright.nn import SparseTensor
from sparsewright.testing.targets import TargetContract

SHAPE = (32, 64)


class TestThisMeetsTheContract(TargetContract):
    @pytest.fixture
    def target(self):
        return ThisTarget()


@pytest.fixture
def measured(monkeypatch):
    """Counts the groups that are really timed."""
    groups = []
    original = ThisTarget._measure

    def counting(self, group, operands, seconds):
        groups.append(group)
        original(self, group, operands, 0.01)

    monkeypatch.setattr(ThisTarget, "_measure", counting)
    return groups


def test_this_is_a_registered_target():
    assert "this" in targets.names()
    assert isinstance(load_target("this"), ThisTarget)


def test_what_is_known_is_not_measured_again_even_by_another_process(measured):
    first = ThisTarget()
    cost = first.layer_cost(SHAPE, NM(2, 4), 8)
    assert len(measured) == 1
    first.layer_cost(SHAPE, NM(2, 4), 8)
    assert ThisTarget().layer_cost(SHAPE, NM(2, 4), 8) == cost
    assert len(measured) == 1


def test_all_choices_of_a_shape_and_token_count_are_timed_side_by_side(measured):
    ThisTarget().prepare([SHAPE, SHAPE], [NM(2, 4), Block(4, 1, 0.5)], [1, 8], ["fp32", "fp16"])
    assert [group.tokens for group in measured] == [1, 8]
    assert all(len(group.choices) == 5 for group in measured)


def test_value_types_have_costs_of_their_own(measured):
    target = ThisTarget()
    target.prepare([SHAPE], [NM(2, 4)], [8], ["fp32", "fp16", "int8"])
    for pattern, value_dtype in ((NM(2, 4), "fp32"), (NM(2, 4), "fp16"), (NM(2, 4), "int8"), (Dense(), "int8")):
        assert target.layer_cost(SHAPE, pattern, 8, value_dtype).source == "measured"
    assert len(measured) == 1


def test_thread_counts_are_kept_apart(measured):
    ThisTarget(threads=1).layer_cost(SHAPE, NM(2, 4), 8)
    ThisTarget(threads=2).layer_cost(SHAPE, NM(2, 4), 8)
    assert len(measured) == 2


@pytest.mark.parametrize(
    ("pattern", "layout"),
    [("2:4", "int8_weights"), ("50%", "int8_weights"), ("2:4x4", "int8"), ("3:6:4", "int8_weights")],
)
def test_int8_values_are_timed_in_the_layout_that_packing_gives_them(measured, monkeypatch, pattern, layout):
    seen = []
    monkeypatch.setattr(operands, "SparseTensor", lambda packed: seen.append(packed) or SparseTensor(packed))
    ThisTarget().layer_cost(SHAPE, parse_pattern(pattern), 8, "int8")
    assert {packed.layout for packed in seen if str(packed.pattern) == pattern} == {layout}


def test_a_named_layout_is_timed_as_itself():
    ratio = ThisTarget().layout_ratio((64, 96), parse_pattern("2:4x4"), 2, "int8", "int8_weights")
    assert 0 < ratio < 1000
    with pytest.raises(LayoutError, match="cannot store 2:4"):
        ThisTarget().layout_ratio((64, 96), parse_pattern("2:4"), 2, "int8", "int8")


@pytest.mark.parametrize("change", [{"cpu": "another"}, {"torch": "99.0"}, {"kernels": "changed"}])
def test_rows_of_another_machine_or_version_are_refused_or_measured_again(measured, monkeypatch, change):
    ThisTarget().layer_cost(SHAPE, NM(2, 4), 8)
    other = dataclasses.replace(this_machine(), **change)
    monkeypatch.setattr(this_module, "this_machine", lambda: other)
    with pytest.raises(ProfileError, match=r"no valid profile of this machine.*sparsewright profile"):
        ThisTarget(stale="refuse").layer_cost(SHAPE, NM(2, 4), 8)
    ThisTarget().layer_cost(SHAPE, NM(2, 4), 8)
    assert len(measured) == 2


def test_rows_that_are_too_old_are_not_used(measured):
    ThisTarget().layer_cost(SHAPE, NM(2, 4), 8)
    ThisTarget(max_age_days=0.0).layer_cost(SHAPE, NM(2, 4), 8)
    assert len(measured) == 2


def test_a_profile_can_be_measured_again_and_written_to_a_file(measured, tmp_path):
    out = tmp_path / "board.json"
    made = profile(shapes=[SHAPE], patterns=["2:4"], tokens=[8], out=out)
    assert Profile.load(out) == made
    profile(shapes=[SHAPE], patterns=["2:4"], tokens=[8], remeasure=True)
    assert len(measured) == 2


def test_only_this_machine_can_be_measured():
    with pytest.raises(ProfileError, match="Only `this` machine"):
        profile("board")


def test_a_pattern_that_does_not_fit_is_not_measured_and_says_why(measured):
    target = ThisTarget()
    target.prepare([(32, 63)], [NM(2, 4)], [8])
    assert "multiple of 4" in target.can_run(NM(2, 4), (32, 63))[0]


def test_a_broken_cache_is_one_clear_sentence(own_cache):
    own_cache.mkdir(parents=True)
    (own_cache / "profile.sqlite").write_text("this is no database, but it is long enough to be read as one" * 20)
    with pytest.raises(SparsewrightError, match=r"cannot be used.*Delete it"):
        ThisTarget().layer_cost(SHAPE, NM(2, 4), 8)


def test_a_cache_folder_that_is_a_file_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsewrightError, match="SPARSEWRIGHT_CACHE"):
        ThisTarget(store=CostStore(tmp_path / "file" / "profile.sqlite")).layer_cost(SHAPE, NM(2, 4), 8)


def test_a_third_party_adds_a_target_with_one_class():
    from sparsewright.hardware import AbstractTarget, Cost

    @targets.register("test-board")
    class Board(AbstractTarget):
        about = "a board that takes one second per call"

        def layer_cost(self, shape, pattern, tokens, value_dtype="fp32"):
            return Cost(pattern.density, 1.0, "modelled")

        def can_run(self, pattern, shape):
            return pattern.why_not(shape)

        def describe(self):
            return {"cpu": "board"}

    try:
        assert load_target("test-board").layer_cost(SHAPE, NM(1, 4), 8).ratio == 0.25
    finally:
        targets.remove("test-board")
