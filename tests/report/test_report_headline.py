"""The first line says what matters most: a rival that wins, or what was won and lost."""

from report_examples import beaten, full, minimal

from sparsewright.report import read_results, summary
from sparsewright.report.headline import Headline


def first_line(results: dict) -> str:
    return Headline(read_results(results)).sentences()[0]


def test_the_first_line_gives_speed_quality_interval_and_bytes() -> None:
    line = first_line(full())
    for figure in ("1.68× at batch 1", "1.74× at batch 32", "1.32 points of MRR", "0.41 to 2.23", "39 % of the bytes"):
        assert figure in line


def test_a_faster_rival_inside_the_budget_takes_the_first_line() -> None:
    line = first_line(beaten())
    assert line.startswith("torch dynamic int8 is faster inside the same quality budget: 1.95× at batch 1 (ours 1.68×)")


def test_a_faster_rival_outside_the_budget_stays_out_of_the_headline() -> None:
    assert not any("onnxruntime" in sentence for sentence in Headline(read_results(full())).sentences())


def test_a_rival_that_wins_at_one_batch_only_is_named_for_that_batch() -> None:
    results = full()
    row = next(row for row in results["table"] if row["name"] == "torch dynamic int8")
    row["speedup"]["32"] = 1.9
    line = first_line(results)
    assert "1.90× at batch 32" in line
    assert "at batch 1 " not in line


def test_a_missed_budget_and_a_missed_prediction_are_said() -> None:
    text = " ".join(Headline(read_results(beaten())).sentences())
    assert "misses the budget" in text
    assert "14.4 %, more than 10 %" in text


def test_the_wider_bound_in_standard_errors_is_said() -> None:
    results = full()
    results["budget"]["or_standard_errors"] = 2
    assert "or 2 standard errors, if larger" in " ".join(Headline(read_results(results)).sentences())


def test_a_plan_that_only_exists_on_paper_is_called_predicted() -> None:
    results = full()
    results["table"] = []
    assert "predicted" in first_line(results)
    assert "not measured end to end" in first_line(results)


def test_a_gain_of_quality_is_not_called_a_loss() -> None:
    results = full()
    results["quality"]["test"] |= {"drop": -0.004, "interval": [-0.009, 0.001]}
    assert "gains 0.40 points of MRR on the test split (95 % interval −0.10 to 0.90)" in first_line(results)


def test_a_plan_that_is_slower_at_one_batch_is_advised_for_the_others_only() -> None:
    results = full()
    for row in results["table"]:
        row["inside_budget"] = row["name"] in ("torch fp32", "ours")
        if row["name"] == "ours":
            row["speedup"]["1"] = 0.9
    assert "does not gain everywhere" in first_line(results)
    assert "only where batches other than 1 are served" in summary(results)


def test_nothing_measured_is_said_in_the_first_line() -> None:
    assert first_line(minimal()) == "This run holds no end-to-end measurement of python:shop.models:ranker."


def test_the_page_for_a_meeting_fits_on_one_page() -> None:
    for results in (full(), beaten(), minimal()):
        text = summary(results)
        assert len(text.splitlines()) < 60
        assert "## Next step" in text


def test_the_page_for_a_meeting_recommends_the_rival_that_wins() -> None:
    assert "Prefer torch dynamic int8" in summary(beaten())


def test_the_page_for_a_meeting_names_the_fair_alternative() -> None:
    assert "fair alternative is torch dynamic int8" in summary(full())


def test_a_faster_rival_that_breaks_only_the_size_bound_is_named_with_that() -> None:
    results = beaten()
    row = next(row for row in results["table"] if row["name"] == "torch dynamic int8")
    row |= {"inside_quality": True, "inside_budget": False}
    line = first_line(results)
    assert line.startswith("torch dynamic int8 is faster inside the same quality budget")
    assert line.endswith("but it breaks another bound of the budget.")


def test_a_rival_outside_the_quality_bounds_is_not_named() -> None:
    results = beaten()
    row = next(row for row in results["table"] if row["name"] == "torch dynamic int8")
    row |= {"inside_quality": False, "inside_budget": False}
    assert not first_line(results).startswith("torch dynamic int8")
