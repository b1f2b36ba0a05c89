"""Return on investment: arithmetic on measured intervals and on the prices a user gives; ratios where none are given.

Worst, expected and best follow the 95 % interval of our speed-up at the largest batch. Machines are whole and run all
day; the load stays what it is.
"""

import math
from dataclasses import dataclass
from typing import final

from .document import Block, Cell, Column, Section, Table, Text, cell, missing
from .headline import DENSE, OURS, Headline
from .schema import Interval, Latency, Prices, Results
from .units import hours, money, percent, significant, times


@final
@dataclass(frozen=True)
class Outlook:
    """Our speed-up over the dense model in three cases; all three are equal where no interval was measured."""

    worst: float
    expected: float
    best: float
    batch: int
    has_interval: bool

    @property
    def cases(self) -> tuple[float, float, float]:
        """Worst, expected, best."""
        return (self.worst, self.expected, self.best)


def outlook(results: Results) -> Outlook | None:
    """The three cases, or None where our speed-up was not measured."""
    timed = [row for row in results.latency if row.name == OURS and row.speedup]
    if not timed:
        return None
    row = max(timed, key=lambda row: row.batch)
    expected = row.speedup or 1.0
    low, high = row.speedup_interval or (expected, expected)
    return Outlook(min(low, expected), expected, max(high, expected), row.batch, row.speedup_interval is not None)


def cost_per_million(price_per_hour: float, per_second: float, utilisation: float) -> float:
    """Cost of a million inferences on machines that run at this share of their full throughput.

    Args:
        price_per_hour: of one machine.
        per_second: inferences per second of one machine at full load.
        utilisation: 0..1.
    """
    return 1e6 / (per_second * utilisation * 3600) * price_per_hour


def machines_needed(machines: float, speedup: float) -> int:
    """Whole machines that carry the load of `machines` after the speed-up."""
    # The small term keeps 10 / 1.25 from becoming 9 by rounding up 8.000000001.
    return max(1, math.ceil(machines / speedup - 1e-9)) if machines > 0 else 0


def payback_hours(engineering_cost: float, saved_per_hour: float) -> float | None:
    """Hours until the work has paid for itself, or None if it never does."""
    return engineering_cost / saved_per_hour if saved_per_hour > 0 else None


def returns_section(results: Results) -> Section | None:
    """Three cases side by side, or None without a measured speed-up."""
    view = outlook(results)
    if view is None:
        return None
    rows = [_case("speed-up", [times(speed) for speed in view.cases])]
    rows.append(_case("machine time per inference, of torch fp32", [percent(1 / speed) for speed in view.cases]))
    rows.append(_case("machines for the load of 100 today", [str(machines_needed(100, speed)) for speed in view.cases]))
    prices = results.prices or Prices()
    rows += _priced_rows(results, prices, view)
    columns = (Column("", numeric=False), Column("worst"), Column("expected"), Column("best"))
    source = "the 95 % interval of the speed-up" if view.has_interval else "one figure, no interval was measured"
    caption = f"Against torch fp32 at batch {view.batch}; worst and best follow {source}."
    blocks: list[Block] = [Table(columns, tuple(rows), caption)]
    rival = _rival_text(results, view)
    if rival:
        blocks.append(Text(rival))
    if prices.cost_per_machine_hour is None:
        blocks.append(
            Text(
                "No prices were given, so these are ratios. Give `prices` in the recipe (cost_per_machine_hour, "
                "utilisation, machines, engineering_cost, currency) to see money and pay-back time."
            )
        )
    return Section("returns", "Return on investment", tuple(blocks), short="Return")


def _case(label: str, values: list[str]) -> tuple[Cell, ...]:
    return (Cell(label), *(cell(value) for value in values))


def _priced_rows(results: Results, prices: Prices, view: Outlook) -> list[tuple[Cell, ...]]:
    """Rows in money; as many as the given prices allow."""
    price = prices.cost_per_machine_hour
    if price is None:
        return []
    rows: list[tuple[Cell, ...]] = []
    dense = results.row(DENSE)
    use = prices.utilisation if prices.utilisation is not None else 1.0
    if dense is not None and dense.throughput_per_s:
        before = cost_per_million(price, dense.throughput_per_s, use)
        after = [before / speed for speed in view.cases]
        label = f"cost per million inferences (dense {money(before, prices.currency)}, {percent(use)} utilised)"
        rows.append(_case(label, [money(value, prices.currency) for value in after]))
    if prices.machines:
        saved = [prices.machines - machines_needed(prices.machines, speed) for speed in view.cases]
        rows.append(_case(f"machines saved of {significant(prices.machines)}", [f"{value:.0f}" for value in saved]))
        yearly = [value * price * 24 * 365.25 for value in saved]
        rows.append(_case("saved per year", [money(value, prices.currency) for value in yearly]))
        if prices.engineering_cost is not None:
            times_back = [payback_hours(prices.engineering_cost, value * price) for value in saved]
            label = f"pay-back of {money(prices.engineering_cost, prices.currency)} of engineering"
            texts = ["never" if value is None else hours(value) for value in times_back]
            rows.append((Cell(label), *(missing(text) if text == "never" else Cell(text) for text in texts)))
    return rows


def _rival_text(results: Results, view: Outlook) -> str:
    """The same ratio against the fastest other row inside the budget: the fair alternative."""
    batch = str(view.batch)
    others = [
        row for row in results.table if row.name not in (OURS, DENSE) and row.inside_budget and row.speedup.get(batch)
    ]
    if not others:
        return ""
    best = max(others, key=lambda row: row.speedup[batch] or 0.0)
    speed = best.speedup[batch] or 1.0
    spread = _interval(results.latency_of(best.name, view.batch), speed)
    low, high = view.worst / spread[1], view.best / spread[0]
    text = (
        f"The fair alternative is {best.name}, the fastest other row inside the budget: against it the ratio is "
        f"{times(view.expected / speed)} ({times(low)} to {times(high)}), not {times(view.expected)}."
    )
    if Headline(results).faster_rivals() and view.expected < speed:
        text += " Below 1 there is nothing to save by choosing ours over it at this batch."
    return text


def _interval(row: Latency | None, speed: float) -> Interval:
    return row.speedup_interval if row is not None and row.speedup_interval is not None else (speed, speed)
