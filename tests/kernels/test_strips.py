"""Strips of four rows (2:4t): which weights have them, and that results agree with float64."""

import pytest
import torch
from kernel_weights import random_weight
from torch import Tensor

from sparsewright.core import instruction_set
from sparsewright.kernels import linear, reference_linear, which
from sparsewright.kernels.sparse_linear import strips
from sparsewright.kernels.sparse_linear.strips import strips_of, turned_strips_of
from sparsewright.layouts import PackedWeight, pack
from sparsewright.solvers import solve_mask

LEAST_TOKENS = 33


@pytest.fixture(autouse=True)
def any_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are compiled for every instruction set, also for those on which they are not the fastest."""
    monkeypatch.setattr(strips, "_SETS", (instruction_set(),))


def packed(out: int, in_: int, dtype: torch.dtype = torch.float32, pattern: str = "2:4t") -> PackedWeight:
    weight = random_weight(out, in_)
    return pack(weight, solve_mask(weight.abs(), pattern), "vector", pattern, dtype)


def planes(weight: PackedWeight) -> tuple[Tensor, Tensor]:
    return weight.tensors["index"], weight.tensors["pointers"]


def test_only_two_of_every_four_rows_and_columns_make_strips() -> None:
    assert strips_of(*planes(packed(32, 64)), 32, 64) is not None
    assert strips_of(*planes(packed(32, 64, pattern="2:4")), 32, 64) is None
    assert strips_of(*planes(packed(32, 64, pattern="1:4t")), 32, 64) is None
    assert strips_of(*planes(packed(32, 64, pattern="4:8t")), 32, 64) is None
    assert strips_of(*planes(packed(32, 62, pattern="50%")), 32, 62) is None


def test_every_column_of_a_strip_has_one_record_with_its_two_places() -> None:
    weight = packed(8, 300)
    found = strips_of(*planes(weight), 8, 300)
    assert found is not None
    mask = weight.unpack() != 0
    counts = found.counts.view(found.blocks, 2, 6)
    records = iter(found.records.tolist())
    rows = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    for block in range(found.blocks):
        start = block * found.block_columns
        part = mask[:, start : start + found.block_columns]
        for strip in range(2):
            seen = []
            for run, pair in enumerate(rows):
                for _ in range(int(counts[block, strip, run])):
                    record = next(records)
                    column = record & 0xFF
                    seen.append(column)
                    for row, place in zip(pair, (record >> 8 & 0xFF, record >> 16)):
                        line = part[4 * strip + row]
                        assert line[column]
                        assert place == int(line[:column].sum())
            assert sorted(seen) == list(range(part.shape[1]))
    assert next(records, None) is None


@pytest.mark.parametrize("shape", [(4, 4), (8, 300), (100, 72), (260, 516)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_results_agree_with_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias = packed(*shape, dtype), torch.randn(shape[0])
    for tokens in (33, 50, 96, 130, 700):
        assert which(weight, tokens) == "strip_lane"
        x = torch.randn(tokens, shape[1])
        truth = reference_linear(x.double(), weight, bias.double())
        torch.testing.assert_close(linear(x, weight, bias).double(), truth, rtol=0, atol=5e-6)
    assert which(weight, LEAST_TOKENS - 1) == "token_lane"


@pytest.mark.parametrize("shape", [(4, 4), (300, 8), (72, 100), (516, 260)])
def test_gradients_of_inputs_agree_with_float64(shape: tuple[int, int]) -> None:
    weight = packed(*shape)
    values, index, pointers = (weight.tensors[name] for name in ("values", "index", "pointers"))
    assert turned_strips_of(index, pointers, *shape).records.numel() == shape[0] * shape[1] // 4
    for tokens in (1, 20, 50, 130):
        dy = torch.randn(tokens, shape[0])
        dx = torch.ops.sparsewright.linear_input_grad(dy, values, index, pointers, shape[1])
        torch.testing.assert_close(dx.double(), dy.double() @ weight.unpack().double(), rtol=1e-6, atol=5e-6)


def test_bits_do_not_depend_on_threads_or_on_the_place_in_the_batch() -> None:
    weight = packed(128, 256)
    x = torch.randn(200, 256)
    before = torch.get_num_threads()
    y = linear(x, weight)
    try:
        torch.set_num_threads(3)
        assert torch.equal(linear(x, weight), y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(linear(x[60:150], weight), y[60:150])
    assert torch.equal(linear(x[167:], weight), y[167:])
