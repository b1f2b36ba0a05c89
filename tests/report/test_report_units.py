"""How numbers read."""

import pytest

from sparsewright.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0139, "13.9 ms"),
        (1.18e-4, "118 µs"),
        (1.274, "1.27 s"),
        (492.2, "8 min 12 s"),
        (None, "not measured"),
        (0, "0 µs"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(45.3e6, "45.3 MB"), (999, "999 B"), (1.5e9, "1.50 GB"), (1500, "1.50 kB")]
)
def test_bytes_are_decimal(value: float, text: str) -> None:
    assert units.size(value) == text


def test_a_loss_reads_with_a_true_minus_and_a_gain_with_a_plus() -> None:
    assert units.signed_points(0.0132) == "−1.32"
    assert units.signed_points(-0.004) == "+0.40"
    assert units.signed_points(-1e-7) == "0.00"


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (12.345, "12.3"), (0.012345, "0.0123"), (-0.5, "−0.500"), (0, "0")]
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert units.significant(value) == text


def test_pay_back_time_is_told_in_units_people_plan_with() -> None:
    assert units.hours(5) == "5.0 hours"
    assert units.hours(24 * 20) == "20 days"
    assert units.hours(24 * 90) == "3.0 months"
    assert units.hours(24 * 365.25 * 3) == "3.0 years"
