"""One fixture: packed weights of any pattern and shape."""

from collections.abc import Callable

import pytest
import torch
from kernel_weights import obeying_mask, random_weight

from sparsewright.core import parse_pattern
from sparsewright.layouts import PackedWeight, pack

MakeWeight = Callable[..., PackedWeight]


@pytest.fixture
def packed_weight() -> MakeWeight:
    def make(
        pattern: str, out: int, in_: int, value_dtype: torch.dtype = torch.float32, layout: str = "vector"
    ) -> PackedWeight:
        rule = parse_pattern(pattern)
        weight = random_weight(out, in_)
        return pack(weight, obeying_mask(weight, rule), layout, rule, value_dtype)

    return make
