"""The laws of layouts."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ..core import AbstractPattern, BundleError, PatternError, parse_pattern
from ..layouts import AbstractLayout, PackedWeight
from ..solvers import solve_mask
from .examples import PATTERN_TEXTS, SHAPES, Shape, fitting_shapes, row_unit, sample_scores, sample_weight

_BITS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 16, torch.int8: 8}


def example_mask(pattern: AbstractPattern, shape: Shape) -> Tensor:
    """A full mask of the pattern; where no solver knows the pattern, a lawful mask that keeps less."""
    try:
        return solve_mask(sample_scores(shape, seed=3), pattern)
    except PatternError:
        mask = torch.zeros(shape, dtype=torch.bool)
        # One weight per m x m tile obeys every n of m, whichever way it is counted.
        unit = row_unit(pattern) or 1
        mask[::unit, ::unit] = True
        return mask if not pattern.check_mask(mask) else torch.zeros(shape, dtype=torch.bool)


class LayoutContract:
    """Subclass it and define the fixture `layout`; the layout must be registered, because packed weights find it."""

    # File forms of tiny weights carry a few bytes of rounding up.
    slack_bytes = 64

    def _cases(self, layout: AbstractLayout) -> Iterator[tuple[AbstractPattern, Shape, Tensor, Tensor]]:
        for text in PATTERN_TEXTS:
            pattern = parse_pattern(text)
            for shape in fitting_shapes(pattern):
                if not layout.why_not(pattern, shape):
                    yield pattern, shape, sample_weight(shape), example_mask(pattern, shape)

    def test_it_stores_some_pattern_and_gives_reasons_for_the_others(self, layout: AbstractLayout) -> None:
        assert next(self._cases(layout), None) is not None
        for text in PATTERN_TEXTS:
            pattern = parse_pattern(text)
            if not pattern.fits((7, 13)):
                assert layout.why_not(pattern, (7, 13)), str(pattern)

    def test_unpacking_gives_back_the_masked_weight_bit_for_bit(self, layout: AbstractLayout) -> None:
        for dtype in layout.value_dtypes:
            for pattern, shape, weight, mask in self._cases(layout):
                packed = layout.pack(weight, mask, pattern, dtype)
                assert (packed.shape, packed.pattern, packed.value_dtype) == (shape, pattern, dtype)
                dense = packed.unpack()
                assert dense.dtype == (dtype if dtype.is_floating_point else torch.float32)
                assert torch.equal(dense, layout.rounded(torch.where(mask, weight, 0), dtype)), f"{pattern} {shape}"

    def test_masks_that_keep_less_than_the_pattern_allows_are_stored_too(self, layout: AbstractLayout) -> None:
        for pattern, shape, weight, mask in self._cases(layout):
            fewer = mask & (sample_scores(shape, seed=9) > 0.7)
            for lawful in (fewer, torch.zeros_like(mask)):
                dtype = layout.value_dtypes[0]
                packed = layout.pack(weight, lawful, pattern, dtype)
                expected = layout.rounded(torch.where(lawful, weight, 0), dtype)
                assert torch.equal(packed.unpack(), expected), f"{pattern} {shape}"
                self._assert_survives_storage(layout, packed)

    def test_a_packed_weight_does_not_change_with_its_source(self, layout: AbstractLayout) -> None:
        for pattern, _, weight, mask in self._cases(layout):
            packed = layout.pack(weight, mask, pattern, layout.value_dtypes[0])
            before = packed.unpack()
            weight.add_(1)
            packed.unpack().add_(1)
            assert torch.equal(packed.unpack(), before), str(pattern)

    def test_the_file_form_gives_back_the_same_packed_weight(self, layout: AbstractLayout) -> None:
        for dtype in layout.value_dtypes:
            for pattern, _, weight, mask in self._cases(layout):
                self._assert_survives_storage(layout, layout.pack(weight, mask, pattern, dtype))

    def _assert_survives_storage(self, layout: AbstractLayout, packed: PackedWeight) -> None:
        stored = layout.to_storage(packed)
        assert {"values", "index"} <= set(stored)
        assert stored["values"].dtype == packed.value_dtype
        assert stored["index"].dtype == torch.uint8
        assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in stored.values())
        again = layout.from_storage(stored, packed.pattern, packed.shape, packed.value_dtype)
        case = f"{packed.pattern} {packed.shape}"
        assert torch.equal(again.unpack(), packed.unpack()), case
        assert set(again.tensors) == set(packed.tensors)
        for name, tensor in packed.tensors.items():
            assert torch.equal(again.tensors[name], tensor), f"{case} {name}"
        twice = layout.to_storage(again)
        assert all(torch.equal(twice[name], stored[name]) for name in stored), case

    def test_the_file_form_is_as_small_as_promised(self, layout: AbstractLayout) -> None:
        for text in PATTERN_TEXTS:
            pattern, shape = parse_pattern(text), (96, 768)
            if layout.why_not(pattern, shape):
                continue
            for dtype in layout.value_dtypes:
                packed = layout.pack(sample_weight(shape), example_mask(pattern, shape), pattern, dtype)
                size = sum(tensor.numel() * tensor.element_size() for tensor in layout.to_storage(packed).values())
                bound = 1.03 * layout.expected_bytes(pattern, shape, _BITS[dtype])
                assert size <= bound + self.slack_bytes, f"{pattern}: {size} bytes, promised {bound:.0f}"

    def test_damaged_files_raise_bundle_errors(self, layout: AbstractLayout) -> None:
        for pattern, shape, weight, mask in self._cases(layout):
            dtype = layout.value_dtypes[0]
            stored = layout.to_storage(layout.pack(weight, mask, pattern, dtype))
            for case, damaged in _damages(stored):
                assert not _reads(layout, damaged, pattern, shape), f"{pattern} {shape}: {case} was taken"
            with pytest.raises(BundleError):
                layout.from_storage(stored, pattern, shape, torch.float64)

    def test_a_smaller_shape_than_the_stored_one_is_refused(self, layout: AbstractLayout) -> None:
        for pattern, shape, weight, mask in self._cases(layout):
            if shape == SHAPES[0]:
                stored = layout.to_storage(layout.pack(weight, mask, pattern, layout.value_dtypes[0]))
                half = (shape[0] // 2, shape[1])
                assert not _reads(layout, stored, pattern, half), f"{pattern} {shape} was taken for {half}"

    def test_random_bytes_are_refused_or_obey_the_pattern(self, layout: AbstractLayout) -> None:
        generator = torch.Generator().manual_seed(1)
        for pattern, shape, weight, mask in self._cases(layout):
            stored = layout.to_storage(layout.pack(weight, mask, pattern, layout.value_dtypes[0]))
            for _ in range(5):
                index = torch.randint(0, 256, stored["index"].shape, generator=generator).to(torch.uint8)
                try:
                    read = layout.from_storage({**stored, "index": index}, pattern, shape, layout.value_dtypes[0])
                except BundleError:
                    continue
                assert pattern.check_mask(read.unpack() != 0) == [], f"{pattern} {shape}"

    def test_packed_weights_can_be_copied_and_sent_to_a_process(self, layout: AbstractLayout) -> None:
        pattern, _, weight, mask = next(self._cases(layout))
        packed = layout.pack(weight, mask, pattern, layout.value_dtypes[0])
        for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), packed.to("cpu")):
            assert torch.equal(again.unpack(), packed.unpack())
            assert again.size_bytes == packed.size_bytes


def _reads(layout: AbstractLayout, stored: dict[str, Tensor], pattern: AbstractPattern, shape: Shape) -> bool:
    try:
        layout.from_storage(stored, pattern, shape, layout.value_dtypes[0])
    except BundleError:
        return False
    return True


def _damages(stored: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, tensor in stored.items():
        yield f"no {name}", {other: kept for other, kept in stored.items() if other != name}
        yield f"{name} with one more element", {**stored, name: torch.cat([tensor.reshape(-1), tensor.new_ones(1)])}
        yield f"{name} of another dtype", {**stored, name: tensor.to(torch.int32)}
        if tensor.numel():
            yield f"{name} cut", {**stored, name: tensor.reshape(-1)[:-1]}
            yield f"{name} emptied", {**stored, name: tensor.reshape(-1)[:0]}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and tensor.numel():
            spoiled = tensor.clone()
            spoiled.view(-1)[-1] = float("nan")
            yield f"a NaN in {name}", {**stored, name: spoiled}
