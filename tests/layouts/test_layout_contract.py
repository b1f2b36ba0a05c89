"""Every registered layout meets the contract."""

import pytest

from sparsewright.layouts import AbstractLayout, layouts
from sparsewright.testing import LayoutContract


class TestEveryLayout(LayoutContract):
    @pytest.fixture(params=layouts.names())
    def layout(self, request: pytest.FixtureRequest) -> AbstractLayout:
        return layouts.get(request.param)
