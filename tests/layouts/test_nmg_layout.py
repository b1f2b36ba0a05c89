"""The layout `nmg`: its bytes, its file form, and weights as STen stores them."""

import pytest
import torch

from sparsewright.core import BundleError, LayoutError, NumericError, parse_pattern
from sparsewright.core.grouped import kept_rows
from sparsewright.layouts import PackedWeight, float_layout, layouts, pack, storage_bytes
from sparsewright.layouts.nmg import from_sten
from sparsewright.solvers import solve_mask

NMG_LAYOUT = layouts.get("nmg")


def packed_weight(
    text: str, out: int, in_: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, PackedWeight]:
    weight = torch.randn(out, in_, generator=torch.Generator().manual_seed(0))
    mask = solve_mask(weight.abs(), text)
    return torch.where(mask, weight, 0).to(dtype), pack(weight, mask, "nmg", text, dtype)


@pytest.mark.parametrize(
    ("text", "share"), [("3:6:4", 0.583), ("2:4:16", 0.625), ("1:4:16", 0.375), ("2:8:4", 0.3125), ("1:10:8", 0.15)]
)
def test_memory_is_that_of_the_kept_values_and_one_short_number_per_column(text: str, share: float) -> None:
    rule = parse_pattern(text)
    shape = (20 * getattr(rule, "m"), 2 * getattr(rule, "chunk"))  # noqa: B009 (both are those of n:m:g)
    _, packed = packed_weight(text, *shape)
    assert packed.size_bytes == pytest.approx(share * 4 * shape[0] * shape[1], rel=1e-3)
    assert storage_bytes(packed) <= NMG_LAYOUT.expected_bytes(rule, shape, 32) + 1 < packed.size_bytes


@pytest.mark.parametrize("shape", [(96, 384), (13, 77), (1, 20), (770, 90)])
@pytest.mark.parametrize("text", ["3:6:4", "2:4:16", "1:10:16", "1:4:2", "4:8:1", "2:2:3"])
def test_any_shape_comes_back_from_memory_and_file(text: str, shape: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.float16):
        dense, packed = packed_weight(text, *shape, dtype)
        assert torch.equal(packed.unpack(), dense)
        stored = NMG_LAYOUT.to_storage(packed)
        back = NMG_LAYOUT.from_storage(stored, packed.pattern, shape, dtype)
        assert all(torch.equal(back.tensors[name], tensor) for name, tensor in packed.tensors.items())


def test_columns_stand_pattern_by_pattern_in_ascending_order() -> None:
    dense, packed = packed_weight("2:4:3", 8, 30)
    values, index = packed.tensors["values"], packed.tensors["index"]
    assert values.shape == (2, 2, 6, 3, 2)
    assert index.shape == (2, 2, 6, 3, 1)
    assert index.dtype == torch.int16
    rows = kept_rows(2, 4).tolist()
    for chunk in range(2):
        for block in range(2):
            for pattern in range(6):
                columns = [int(c) for c in index[chunk, block, pattern].flatten()]
                filled = [c for c in columns if c >= 0]
                assert columns == sorted(filled) + [-1] * (3 - len(filled))
                for slot, column in enumerate(filled):
                    for place, row in enumerate(rows[pattern]):
                        stored = values[chunk, block, pattern, slot, place]
                        assert stored == dense[block * 4 + row, chunk * 18 + column]


@pytest.mark.parametrize("text", ["3:6:4", "1:10:16", "2:4:2"])
@pytest.mark.parametrize("past", ["minus one", "past the end"])
def test_tensors_as_sten_stores_them_are_taken_over(text: str, past: str) -> None:
    rule = parse_pattern(text)
    n, m, g = (int(part) for part in text.split(":"))
    shape = (4 * m - 1, 2 * getattr(rule, "chunk") - 5)  # noqa: B009
    dense, packed = packed_weight(text, *shape)
    # STen's slots of a pattern are in no order, and what fills up the chunk has columns past the end.
    shuffle = torch.randperm(g, generator=torch.Generator().manual_seed(1))
    values = packed.tensors["values"][:, :, :, shuffle].double()
    index = packed.tensors["index"][:, :, :, shuffle].clone()
    if past == "past the end":
        for chunk in index.flatten(0, 1):
            missing = (chunk < 0).nonzero()
            free = sorted(set(range(getattr(rule, "chunk"))) - set(chunk.flatten().tolist()))  # noqa: B009
            for place, column in zip(missing.tolist(), free):
                chunk[tuple(place)] = column
        assert not (index < 0).any()
    taken = from_sten(values, index, n, m, g, shape)
    assert torch.equal(taken.unpack(), dense)
    assert taken.value_dtype == torch.float32
    assert all(torch.equal(taken.tensors[name], tensor) for name, tensor in packed.tensors.items())


def test_foreign_tensors_that_do_not_fit_are_refused_in_words() -> None:
    _, packed = packed_weight("2:4:3", 7, 30)
    values, index = packed.tensors["values"], packed.tensors["index"]
    with pytest.raises(LayoutError, match=r"takes values \(2, 2, 6, 3, 2\)"):
        from_sten(values[:1], index[:1], 2, 4, 3, (7, 30))
    with pytest.raises(LayoutError, match="int16"):
        from_sten(values, index.float(), 2, 4, 3, (7, 30))
    with pytest.raises(LayoutError, match="between -1 and 17, got -1 to 18"):
        from_sten(values, index.clone().index_put_((torch.tensor(0),) * 5, torch.tensor(18).short()), 2, 4, 3, (7, 30))
    twice = index.clone()
    twice[0, 0, 0, 0, 0] = twice[0, 0, 0, 1, 0]
    with pytest.raises(LayoutError, match=r"stands 0 times|stands 2 times"):
        from_sten(values, twice, 2, 4, 3, (7, 30))
    with pytest.raises(NumericError):
        from_sten(values * float("nan"), index, 2, 4, 3, (7, 30))
    with pytest.raises(LayoutError, match="rows beyond 7"):
        from_sten(torch.ones_like(values), index, 2, 4, 3, (7, 30))


def test_a_damaged_file_is_refused() -> None:
    _, packed = packed_weight("3:6:4", 7, 80)
    stored = NMG_LAYOUT.to_storage(packed)
    rule, shape = packed.pattern, packed.shape
    with pytest.raises(BundleError, match="at most 4 columns"):
        NMG_LAYOUT.from_storage({**stored, "index": torch.zeros_like(stored["index"])}, rule, shape, torch.float32)
    with pytest.raises(BundleError, match="beyond its last"):
        NMG_LAYOUT.from_storage({**stored, "values": torch.ones_like(stored["values"])}, rule, shape, torch.float32)
    with pytest.raises(BundleError, match="columns"):
        NMG_LAYOUT.from_storage(stored, parse_pattern("1:256:100"), (256, 1), torch.float32)


def test_auto_takes_the_layout_of_the_pattern() -> None:
    weight = torch.randn(12, 80)
    mask = solve_mask(weight.abs(), "3:6:4")
    assert pack(weight, mask, pattern="3:6:4").layout == "nmg"
    assert pack(weight, mask).layout == "nmg"
    assert float_layout(parse_pattern("3:6:4"), (12, 80)) == "nmg"
    # A chunk much longer than the weight would be mostly empty slots.
    assert float_layout(parse_pattern("3:6:4"), (12, 4)) == "vector"
    assert float_layout(parse_pattern("2:4"), (12, 80)) == "vector"
    assert torch.equal(pack(weight[:, :4], mask[:, :4], pattern="3:6:4").unpack(), torch.where(mask, weight, 0)[:, :4])
