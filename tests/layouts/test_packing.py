"""The door to all layouts: what it checks, what it reads off a mask, what it chooses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.core import Dense, LayoutError, NumericError, Unstructured
from sparsewright.layouts import PackedWeight, infer_pattern, layouts, pack, storage_bytes
from sparsewright.layouts.storage import pack_bits, unpack_bits
from sparsewright.solvers import solve_mask


@pytest.mark.parametrize("layout", ["auto", "vector", "bitmask", "masked"])
def test_packing_needs_no_pattern(layout: str) -> None:
    weight = torch.randn(20, 32)
    mask = solve_mask(weight.abs(), "2:4x4")
    packed = pack(weight, mask, layout)
    assert torch.equal(packed.unpack(), torch.where(mask, weight, 0))
    assert packed.group == 4
    assert packed.layout == ("vector" if layout == "auto" else layout)


@pytest.mark.parametrize(
    ("text", "inferred"),
    [
        ("2:4", "2:4"),
        ("2:4x4", "2:4x4"),
        ("1:8x4", "1:8x4"),
        ("1:4x16", "1:4x16"),
        ("3:16x2", "3:16x2"),
        ("5:32", "5:32"),
    ]
    + [("50%", "50%"), ("8x1@25%", "8x1@25%"), ("2:4x3", "2:4"), ("2:4x32", "2:4x16"), ("4x4@25%", "4x1@25%")]
    # 1:4:1 keeps 1 of 4 both ways; no whole chunk of 4:8:4 fits.
    + [("3:6:2", "3:6:2"), ("2:4:8", "2:4:8"), ("1:10:4", "1:10:4"), ("1:4:1", "1:4"), ("4:8:4", "50%")],
)
def test_the_tightest_pattern_is_read_off_the_mask(text: str, inferred: str) -> None:
    torch.manual_seed(0)
    mask = solve_mask(torch.rand(96, 64), text)
    assert str(infer_pattern(mask)) == inferred


def test_a_short_last_block_and_chunk_do_not_hide_an_n_m_g() -> None:
    torch.manual_seed(0)
    assert str(infer_pattern(solve_mask(torch.rand(50, 100), "3:6:4"))) == "3:6:4"


def test_one_weight_more_or_less_makes_a_mask_unstructured() -> None:
    torch.manual_seed(0)
    for text in ("2:4", "3:6:2"):
        mask = solve_mask(torch.rand(96, 64), text)
        mask[50, 33] = ~mask[50, 33]
        assert isinstance(infer_pattern(mask), Unstructured)


@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(0, 10),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 99),
)
def test_every_mask_obeys_what_is_read_off_it(out: int, in_: int, tenths: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.rand(-(-out // group), in_, generator=generator) < tenths / 10
    mask = shared.repeat_interleave(group, dim=0)[:out]
    pattern = infer_pattern(mask)
    assert pattern.fits((out, in_))
    assert pattern.check_mask(mask) == []
    assert isinstance(pattern, Dense) == bool(mask.all() or mask.numel() == 1)


def test_a_dense_mask_falls_to_the_masked_layout() -> None:
    weight = torch.randn(4, 8)
    packed = pack(weight, torch.ones(4, 8, dtype=torch.bool))
    assert packed.layout == "masked"
    assert torch.equal(packed.unpack(), weight)


def test_an_exact_zero_among_kept_weights_stays_stored() -> None:
    weight = torch.zeros(4, 8)
    mask = solve_mask(torch.rand(4, 8), "2:4")
    assert pack(weight, mask, "bitmask").tensors["values"].numel() == 16


def test_double_precision_weights_are_packed_as_float32() -> None:
    weight = torch.randn(4, 8, dtype=torch.float64)
    mask = solve_mask(weight.abs(), "2:4")
    assert torch.equal(pack(weight, mask).unpack(), torch.where(mask, weight, 0).float())


@pytest.mark.parametrize(
    ("weight", "mask", "options", "message"),
    [
        (torch.ones(4, 8), torch.ones(4, 4, dtype=torch.bool), {}, "same shape"),
        (torch.ones(4, 8), torch.ones(4, 8), {}, "bool mask"),
        (torch.ones(4), torch.ones(4, dtype=torch.bool), {}, r"\(out, in\)"),
        (torch.ones(4, 8, dtype=torch.int8), torch.ones(4, 8, dtype=torch.bool), {}, "floating-point"),
        (torch.ones(4, 8), torch.ones(4, 8, dtype=torch.bool), {"pattern": "2:4"}, "must obey 2:4: row 0"),
        (torch.ones(4, 6), torch.zeros(4, 6, dtype=torch.bool), {"pattern": "2:4"}, "multiple of 4"),
        (torch.ones(4, 8), torch.ones(4, 8, dtype=torch.bool), {"value_dtype": torch.int32}, "float16"),
        (torch.ones(4, 8), torch.ones(4, 8, dtype=torch.bool), {"layout": "vector"}, "cannot store dense"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_the_rule(
    weight: torch.Tensor, mask: torch.Tensor, options: dict[str, str], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        pack(weight, mask, **options)  # type: ignore[arg-type]


def test_nan_and_values_that_overflow_the_value_dtype_are_refused_with_their_position() -> None:
    weight, mask = torch.ones(4, 8), torch.zeros(4, 8, dtype=torch.bool)
    mask[:, :2] = True
    weight[1, 0] = 1e6
    assert float(pack(weight, mask).unpack()[1, 0]) == 1e6
    with pytest.raises(NumericError, match=r"float16.*\[1, 0\]"):
        pack(weight, mask, value_dtype=torch.float16)
    weight[2, 7] = float("nan")
    with pytest.raises(NumericError, match=r"\[2, 7\]"):
        pack(weight, mask)


def test_sizes_are_those_of_the_tensors() -> None:
    weight = torch.randn(64, 64)
    mask = solve_mask(weight.abs(), "50%")
    packed = pack(weight, mask, "bitmask", value_dtype=torch.float16)
    assert packed.size_bytes == storage_bytes(packed) == 64 * 64 // 2 * 2 + 64 * 64 // 8


def test_a_packed_weight_is_frozen() -> None:
    packed = pack(torch.randn(4, 8), torch.ones(4, 8, dtype=torch.bool), "masked")
    with pytest.raises(AttributeError):
        packed.layout = "vector"  # type: ignore[misc]
    with pytest.raises(TypeError):
        packed.tensors["values"] = torch.zeros(1)  # type: ignore[index]
    with pytest.raises(LayoutError, match="1 x 1"):
        PackedWeight("masked", Dense(), (0, 8), torch.float32, {})


@given(st.lists(st.booleans(), max_size=70))
def test_bits_survive_their_bytes(bits: list[bool]) -> None:
    packed = pack_bits(torch.tensor(bits, dtype=torch.bool))
    assert packed.numel() == -(-len(bits) // 8)
    assert unpack_bits(packed, len(bits)).tolist() == bits
    assert unpack_bits(packed, 8 * packed.numel())[len(bits) :].any() == torch.tensor(False)


def test_the_layouts_of_the_house_are_registered() -> None:
    assert {"bitmask", "masked", "vector"} <= set(layouts.names())
