"""Every registered mask schedule meets the contract."""

import pytest

from sparsewright.testing import ScheduleContract
from sparsewright.training import AbstractSchedule, Gradual, schedules


class TestEverySchedule(ScheduleContract):
    @pytest.fixture(params=schedules.names())
    def schedule(self, request: pytest.FixtureRequest) -> AbstractSchedule:
        return schedules.get(request.param)


class TestGradualWithFreeMasks(ScheduleContract):
    @pytest.fixture
    def schedule(self) -> AbstractSchedule:
        return Gradual(nested=False)
