"""The vector layout: packing, the file form, and what hostile files meet."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_weights import obeying_mask

from sparsewright.core import BundleError, SparsewrightError, parse_pattern
from sparsewright.layouts import layouts, pack, storage_bytes

VECTOR = layouts.get("vector")
PATTERNS = ("2:4", "1:4x4", "2:4x16", "1:8x2", "3:5", "2:4x32", "2:4x6", "2:4t", "1:8t", "7%", "1%", "50%", "4x1@50%")
MORE_PATTERNS = ("16x1@10%", "4x8@25%", "3:6:4", "1:16:4", "64x1@3%")


def weight_and_mask(pattern, out, in_, seed=0):
    weight = torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))
    return weight, obeying_mask(weight, parse_pattern(pattern))


@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS + MORE_PATTERNS)
def test_packing_and_the_file_form_lose_nothing(pattern, value_dtype):
    shape = (48, 240)
    weight, mask = weight_and_mask(pattern, *shape)
    rule = parse_pattern(pattern)
    packed = pack(weight, mask, "vector", rule, value_dtype)
    assert torch.equal(packed.unpack(), torch.where(mask, weight, 0).to(value_dtype))
    back = VECTOR.from_storage(VECTOR.to_storage(packed), rule, shape, value_dtype)
    assert {name: tensor.shape for name, tensor in back.tensors.items()} == {
        name: tensor.shape for name, tensor in packed.tensors.items()
    }
    for name, tensor in packed.tensors.items():
        assert torch.equal(back.tensors[name], tensor), name


@pytest.mark.parametrize("value_dtype, bits", [(torch.float32, 32), (torch.float16, 16)])
@pytest.mark.parametrize("pattern", PATTERNS + MORE_PATTERNS)
def test_the_file_form_takes_at_most_three_percent_more_than_theory(pattern, value_dtype, bits):
    shape = (385, 400) if parse_pattern(pattern).fits((385, 400)) else (480, 480)
    weight, mask = weight_and_mask(pattern, *shape)
    rule = parse_pattern(pattern)
    packed = pack(weight, mask, "vector", rule, value_dtype)
    assert storage_bytes(packed) <= 1.03 * VECTOR.expected_bytes(rule, shape, bits)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mask_that_obeys_comes_back(data):
    pattern = parse_pattern(
        data.draw(st.sampled_from(["2:4", "2:4x4", "3:5x2", "40%", "4x1@50%", "2x4@50%", "2:4x12"]))
    )
    groups_of = getattr(pattern, "m", getattr(pattern, "columns", 1))
    out, in_ = data.draw(st.integers(1, 40)), groups_of * data.draw(st.integers(1, 90))
    seed = data.draw(st.integers(0, 1000))
    weight, mask = weight_and_mask(str(pattern), out, in_, seed)
    # At most: some groups keep less than the pattern allows, whole rows nothing at all.
    thinned = mask & (torch.rand(out, in_, generator=torch.Generator().manual_seed(seed)) < data.draw(st.floats(0, 1)))
    packed = pack(weight, thinned, "vector", pattern)
    assert torch.equal(packed.unpack(), torch.where(thinned, weight, 0))
    back = VECTOR.from_storage(VECTOR.to_storage(packed), pattern, (out, in_), torch.float32)
    assert torch.equal(back.unpack(), packed.unpack())


def test_exact_zeros_among_kept_weights_stay_kept():
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, :2] = True
    packed = pack(torch.zeros(4, 8), mask, "vector", "4x1@25%")
    assert packed.tensors["values"].shape == (2, 4)
    back = VECTOR.from_storage(VECTOR.to_storage(packed), packed.pattern, (4, 8), torch.float32)
    assert torch.equal(back.tensors["index"], packed.tensors["index"])


def test_half_values_that_overflow_are_refused():
    weight = torch.full((4, 4), 1e6)
    with pytest.raises(SparsewrightError):
        pack(weight, torch.eye(4, dtype=torch.bool), "vector", value_dtype=torch.float16)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_bytes_raise_or_give_a_weight_that_obeys(data):
    rule = parse_pattern(data.draw(st.sampled_from(["2:4x4", "3:5", "10%", "4x1@50%", "2x4@50%", "2:4t"])))
    shape = (20, 40)
    stored = VECTOR.to_storage(pack(*weight_and_mask(str(rule), *shape), "vector", rule))
    index = bytearray(stored["index"].numpy().tobytes())
    for _ in range(data.draw(st.integers(0, 3))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    index = index[: len(index) - data.draw(st.integers(0, 2))] + bytes(data.draw(st.integers(0, 2)))
    stored["index"] = torch.tensor(list(index), dtype=torch.uint8)
    try:
        packed = VECTOR.from_storage(stored, rule, shape, torch.float32)
    except BundleError:
        return
    assert packed.tensors["index"].numel() == packed.tensors["values"].shape[0]
    assert int(packed.tensors["pointers"].max()) == packed.tensors["index"].numel()
    assert packed.unpack().shape == shape


@pytest.mark.parametrize("pattern", ["2:4", "1%", "50%", "4x1@1%"])
def test_a_small_file_cannot_ask_for_a_large_weight(pattern):
    rule = parse_pattern(pattern)
    shape = (2**20, 2**20)
    small = {"values": torch.zeros(8), "index": torch.tensor([1, 0, 255, 3], dtype=torch.uint8)}
    with pytest.raises(BundleError):
        VECTOR.from_storage(small, rule, shape, torch.float32)


def test_missing_or_foreign_tensors_are_refused():
    rule = parse_pattern("2:4")
    stored = VECTOR.to_storage(pack(*weight_and_mask("2:4", 8, 16), "vector", rule))
    for broken in (
        {"values": stored["values"]},
        {"values": stored["values"].half(), "index": stored["index"]},
        {"values": stored["values"][:-1], "index": stored["index"]},
        {"values": stored["values"].clone().fill_(float("nan")), "index": stored["index"]},
        {"values": stored["values"], "index": stored["index"].to(torch.int64)},
    ):
        with pytest.raises(BundleError):
            VECTOR.from_storage(broken, rule, (8, 16), torch.float32)
