"""Every registered sparsifier meets the contract."""

import pytest

from sparsewright.sparsifiers import AbstractSparsifier, learned, sparsifiers
from sparsewright.testing import SparsifierContract


class TestEverySparsifier(SparsifierContract):
    @pytest.fixture(params=sparsifiers.names())
    def sparsifier(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AbstractSparsifier:
        # The laws hold after any number of steps, and there are many patterns.
        monkeypatch.setattr(learned, "_STEPS", 4)
        return sparsifiers.get(request.param)
