"""Every registered solver meets the contract."""

import pytest

from sparsewright.solvers import AbstractMaskSolver, solvers
from sparsewright.testing import MaskSolverContract


class TestEverySolver(MaskSolverContract):
    @pytest.fixture(params=solvers.names())
    def solver(self, request: pytest.FixtureRequest) -> AbstractMaskSolver:
        return solvers.get(request.param)
