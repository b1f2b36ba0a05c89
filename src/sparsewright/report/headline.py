"""The first lines of the report: what was won, what it cost, and whether somebody else does it better.

A rival that is faster inside the same quality budget takes the very first line.
"""

from typing import final

from .document import Fact, Tone
from .schema import Results, SplitQuality, TableRow
from .units import percent, points, size, times

OURS = "ours"
DENSE = "torch fp32"


@final
class Headline:
    """Sentences and figures of the first screen, all read from one `Results`."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.ours = results.row(OURS)
        self.split_name, self.split = _split(results)

    @property
    def batches(self) -> list[str]:
        """Batch sizes of our row, small to large."""
        speeds = self.ours.speedup if self.ours else {}
        return sorted((key for key, value in speeds.items() if value is not None), key=_batch_order)

    def faster_rivals(self) -> list[tuple[TableRow, list[str]]]:
        """Rows inside the quality budget that beat ours, with the batch sizes at which they do; the fastest first.

        A rival that breaks another bound, its file's size say, is still faster at the same quality and is named.
        """
        found = []
        for row in self.results.table:
            if row.name in (OURS, DENSE) or _fit(row) is not True:
                continue
            ahead = [batch for batch in self.batches if _speed(row, batch) > _speed(self.ours, batch)]
            if ahead:
                found.append((row, ahead))
        return sorted(found, key=lambda item: -max(_speed(item[0], batch) for batch in item[1]))

    def sentences(self) -> tuple[str, ...]:
        """The headline, its most important sentence first."""
        rivals = [self._rival_sentence(row, ahead) for row, ahead in self.faster_rivals()]
        rest = [self._own_sentence(), self._budget_sentence(), self._prediction_sentence()]
        return tuple(sentence for sentence in [*rivals, *rest] if sentence)

    def slower_batches(self) -> list[str]:
        """Batch sizes at which ours is not faster than torch fp32."""
        return [batch for batch in self.batches if _speed(self.ours, batch) <= 1.0]

    def tone(self) -> Tone:
        """Bad where a rival wins, the budget is missed or nothing got faster; good otherwise; none if unmeasured."""
        if self.ours is None or not self.batches:
            return ""
        bad = self.faster_rivals() or self.ours.inside_budget is False or self.slower_batches()
        return "bad" if bad else "good"

    def facts(self) -> tuple[Fact, ...]:
        """Up to six figures."""
        found: list[Fact] = []
        for batch in self.batches:
            row = self.results.latency_of(OURS, int(batch)) if batch.isdigit() else None
            spread = row.speedup_interval if row else None
            detail = f"{times(spread[0])} to {times(spread[1])}" if spread else "against torch fp32"
            speed = _speed(self.ours, batch)
            found.append(Fact(times(speed), f"speed at batch {batch}", detail, "bad" if speed <= 1 else ""))
        if self.split and self.split.drop is not None:
            outside = self.ours is not None and _fit(self.ours) is False
            gained = _is_gain(self.split.drop)
            label = f"points of {self.results.data.metric} {'gained' if gained else 'lost'}"
            value = points(abs(self.split.drop))
            found.append(Fact(value, label, _spread(self.split), "bad" if outside else ""))
        sizes = self.results.bytes
        if sizes.ours is not None and sizes.dense_fp32:
            label = f"of the dense file, {size(sizes.ours)}"
            half = f"dense fp16: {percent(sizes.dense_fp16 / sizes.dense_fp32)}" if sizes.dense_fp16 else ""
            found.append(Fact(percent(sizes.ours / sizes.dense_fp32), label, half))
        worst = self.results.prediction.worst_miss
        if worst is not None:
            found.append(Fact(percent(abs(worst), 1), "worst miss of the predicted time", "", _miss_tone(worst)))
        return tuple(found)

    def _rival_sentence(self, row: TableRow, ahead: list[str]) -> str:
        speeds = " and ".join(
            f"{times(_speed(row, b))} at batch {b} (ours {times(_speed(self.ours, b))})" for b in ahead
        )
        lost = ""
        if row.drop is not None and self.ours is not None and self.ours.drop is not None:
            lost = f"; it {_lost(row.drop)}, ours {_lost(self.ours.drop)}"
        other = ", but it breaks another bound of the budget" if row.inside_budget is False else ""
        return f"{row.name} is faster inside the same quality budget: {speeds}{lost}{other}."

    def _own_sentence(self) -> str:
        model = self.results.model.source
        if not self.batches:
            chosen = next((point for point in self.results.front if point.chosen), None)
            if chosen is not None and chosen.predicted_speedup is not None:
                return (
                    f"The plan for {model} is predicted to run {times(chosen.predicted_speedup)} as fast as dense; "
                    "it was not measured end to end."
                )
            return f"This run holds no end-to-end measurement of {model}."
        speeds = " and ".join(f"{times(_speed(self.ours, batch))} at batch {batch}" for batch in self.batches)
        verb = (
            "runs"
            if all(_speed(self.ours, batch) > 1 for batch in self.batches)
            else "does not gain everywhere: it runs"
        )
        parts = [f"Our plan for {model} {verb} {speeds} (torch fp32 = 1)"]
        if self.split and self.split.drop is not None:
            spread = f" ({_spread(self.split)})" if self.split.interval else ""
            parts.append(
                f"{_lost(self.split.drop)} of {self.results.data.metric} on the {self.split_name} split{spread}"
            )
        sizes = self.results.bytes
        if sizes.ours is not None and sizes.dense_fp32:
            parts.append(f"takes {percent(sizes.ours / sizes.dense_fp32)} of the bytes")
        text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
        return f"{text}."

    def _budget_sentence(self) -> str:
        budget = self.results.budget
        if self.ours is None or self.ours.inside_budget is None:
            return ""
        bounds = []
        if budget.max_quality_drop is not None:
            wider = budget.or_standard_errors
            errors = f" (or {wider:g} standard errors, if larger)" if wider else ""
            bounds.append(f"at most {points(budget.max_quality_drop)} points lost{errors}")
        if budget.worst_slice_drop is not None:
            bounds.append(f"at most {points(budget.worst_slice_drop)} points lost on any slice")
        if budget.speedup is not None:
            bounds.append(f"at least {times(budget.speedup)}")
        if budget.size_bytes is not None:
            bounds.append(f"at most {size(budget.size_bytes)}")
        allowed = f" ({', '.join(bounds)})" if bounds else ""
        if self.ours.inside_budget:
            return f"It keeps the budget{allowed}."
        return f"It misses the budget{allowed}: do not deploy it without deciding to."

    def _prediction_sentence(self) -> str:
        prediction = self.results.prediction
        worst = prediction.worst_miss
        if worst is None or not misses(self.results):
            return ""
        return f"The predicted time missed the measured one by {percent(abs(worst), 1)}, more than 10 %."


def misses(results: Results) -> bool:
    """Whether an end-to-end prediction misses by more than 10 %."""
    prediction = results.prediction
    if prediction.within_10_percent is not None:
        return not prediction.within_10_percent
    return prediction.worst_miss is not None and abs(prediction.worst_miss) > 0.10


def _miss_tone(miss: float) -> Tone:
    return "bad" if abs(miss) > 0.10 else ""


def _fit(row: TableRow) -> bool | None:
    """Whether a row keeps the bounds on quality; the whole budget where quality alone was not judged."""
    return row.inside_budget if row.inside_quality is None else row.inside_quality


def _split(results: Results) -> tuple[str, SplitQuality | None]:
    """The split to speak about: test where it was opened."""
    for name, split in (("test", results.quality.test), ("validation", results.quality.validation)):
        if split is not None and split.drop is not None:
            return name, split
    return "test", None


def _batch_order(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (1 << 30, text)


def _speed(row: TableRow | None, batch: str) -> float:
    value = row.speedup.get(batch) if row else None
    return value if value is not None else 0.0


def _is_gain(drop: float) -> bool:
    return round(drop, 4) < 0


def _lost(drop: float) -> str:
    return f"gains {points(-drop)} points" if _is_gain(drop) else f"loses {points(drop)} points"


def _spread(split: SplitQuality) -> str:
    """The interval in the direction of the figure beside it: of the loss, or of the gain."""
    if split.interval is None or split.drop is None:
        return ""
    low, high = split.interval
    if _is_gain(split.drop):
        low, high = -high, -low
    return f"95 % interval {points(low)} to {points(high)}"
