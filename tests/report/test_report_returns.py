"""Return on investment is arithmetic on measured intervals; each rule against a figure worked by hand."""

import pytest
from report_examples import full, minimal

from sparsewright.report import read_results
from sparsewright.report.document import Section, Table
from sparsewright.report.returns import cost_per_million, machines_needed, outlook, payback_hours, returns_section


def rows_of(section: Section | None) -> dict[str, list[str]]:
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table))
    return {row[0].text: [part.text for part in row[1:]] for row in table.rows}


def test_a_million_inferences_at_100_per_second_half_used_take_5556_machine_seconds_twice() -> None:
    assert cost_per_million(3.6, 100.0, 0.5) == pytest.approx(20.0)


def test_machines_are_whole_and_never_too_few() -> None:
    assert machines_needed(10, 1.25) == 8
    assert machines_needed(10, 1.24) == 9
    assert machines_needed(1, 5.0) == 1
    assert machines_needed(0, 2.0) == 0


def test_work_that_saves_nothing_never_pays_back() -> None:
    assert payback_hours(1000, 0.0) is None
    assert payback_hours(1000, 4.0) == 250


def test_worst_expected_and_best_follow_the_interval_at_the_largest_batch() -> None:
    view = outlook(read_results(full()))
    assert view is not None
    assert view.batch == 32
    assert view.worst < view.expected < view.best


def test_prices_give_money_and_pay_back_time() -> None:
    rows = rows_of(returns_section(read_results(full())))
    assert rows["machines saved of 40.0"] == ["16", "17", "17"]
    cost = next(values for name, values in rows.items() if name.startswith("cost per million"))
    assert cost == sorted(cost, reverse=True)
    assert all(value.endswith("EUR") for value in cost)


def test_without_prices_there_are_ratios_only() -> None:
    results = full()
    results["prices"] = None
    rows = rows_of(returns_section(read_results(results)))
    assert list(rows) == [
        "speed-up",
        "machine time per inference, of torch fp32",
        "machines for the load of 100 today",
    ]


def test_without_an_interval_the_three_cases_are_one() -> None:
    results = full()
    for row in results["latency"]:
        row["speedup_interval"] = None
    view = outlook(read_results(results))
    assert view is not None
    assert not view.has_interval
    assert view.worst == view.expected == view.best


def test_without_a_measured_speed_up_there_is_no_table() -> None:
    assert returns_section(read_results(minimal())) is None
