"""Every registered sparsifier meets the contract."""

import pytest

from sparsewright.sparsifiers import AbstractSparsifier, sparsifiers
from sparsewright.testing import SparsifierContract


class TestEverySparsifier(SparsifierContract):
    @pytest.fixture(params=sparsifiers.names())
    def sparsifier(self, request: pytest.FixtureRequest) -> AbstractSparsifier:
        return sparsifiers.get(request.param)
