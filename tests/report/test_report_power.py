"""Energy from outside: a meter's log is integrated over the run's windows, and what it cannot cover is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from report_examples import full

from sparsewright.cli import main
from sparsewright.core import DataError, FileError, SparsewrightError
from sparsewright.report import read_power_log, with_assumed_watts, with_power_log, write_report

START = 1_790_000_000.0  # 2026-09-21T14:13:20Z


def window(name: str, batch: int, start: float, seconds: float, calls: int) -> dict[str, Any]:
    return {
        "name": name,
        "batch": batch,
        "start": START + start,
        "end": START + start + seconds,
        "calls": calls,
        "items": calls * batch,
    }


def measured() -> dict[str, Any]:
    """A run with three windows of ten seconds, its clocked parts under `measured` as the pipeline writes them."""
    results = full()
    windows = [window("torch fp32", 1, 2, 10, 400), window("ours", 1, 14, 10, 1000), window("ours", 32, 26, 10, 30)]
    results["measured"] = {"latency": results.pop("latency"), "energy": None, "energy_windows": windows}
    results["energy"] = None
    return results


def log(path: Path, rows: list[tuple[object, object]], head: str = "time,watts") -> Path:
    path.write_text("\n".join([head, *(f"{at},{watts}" for at, watts in rows)]) + "\n")
    return path


def steady(path: Path, watts: float = 20.0, seconds: int = 60) -> Path:
    return log(path, [(START + at, watts) for at in range(seconds)])


def test_a_steady_power_gives_watts_times_seconds_per_item(tmp_path: Path) -> None:
    found = with_power_log(measured(), read_power_log(steady(tmp_path / "meter.csv")))["measured"]["energy"]
    assert found["source"] == "power meter: meter.csv"
    assert found["joules_per_inference"] == pytest.approx({"torch fp32": 200 / 400, "ours": 200 / 1000})
    assert found["by_batch"]["32"] == pytest.approx({"ours": 200 / 960})


def test_a_ramp_is_integrated_by_trapezoids_between_readings(tmp_path: Path) -> None:
    power = read_power_log(log(tmp_path / "ramp.csv", [(START + at, 10 + at) for at in range(0, 61, 2)]))
    for start, end in ((3.3, 13.7), (4.0, 14.0), (3.0, 50.5)):
        exact = 10 * (end - start) + (end**2 - start**2) / 2
        assert power.joules(START + start, START + end) == pytest.approx(exact)


def test_readings_of_the_same_second_are_allowed(tmp_path: Path) -> None:
    rows = [(START + at // 2, 20.0) for at in range(60)]
    assert read_power_log(log(tmp_path / "m.csv", rows)).joules(START + 1, START + 21) == pytest.approx(400)


def test_iso_times_with_and_without_a_zone_other_columns_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    texts = ("2026-09-21T14:13:20Z", "2026-09-21 14:13:21", "2026-09-21T16:13:22.500+02:00")
    path = tmp_path / "m.csv"
    path.write_text("\ufeffvolts, Time ,Watts\n" + "".join(f"230,{text},5\n\n" for text in texts))
    assert read_power_log(path).time.tolist() == [START, START + 1, START + 2.5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "needs one column 'time'"),
        ("time,power\n1,2\n", "needs one column 'watts' in its first line, got time, power"),
        ("time,watts\n1,2\n", "at least two readings, got 1"),
        ("time,watts\n1,2\n3,nan\n", "line 3: watts are a finite number"),
        ("time,watts\n1,2\n3,inf\n", "line 3: watts are a finite number"),
        ("time,watts\n1,2\n3,-1\n", "line 3: watts are a finite number, 0 or more"),
        ("time,watts\n1,2\n3,much\n", "line 3: watts are a number, got 'much'"),
        ("time,watts\nnan,2\n3,4\n", "line 2: a time is"),
        ("time,watts\nnoon,2\n3,4\n", "line 2: a time is ISO 8601 or seconds since 1970, got 'noon'"),
        ("time,watts\n1790000000000,2\n", "not milliseconds"),
        ("time,watts\n5,2\n3,4\n", "line 3: times must not fall"),
        ("time,watts\n1,2\n3\n", "line 3: a row has 2 cells"),
        ("time,watts\n1,12,5\n3,12,5\n", "line 2: a row has 2 cells as the first line does, got 3"),
        ('time,watts\n1,"2\n', "is not a CSV file"),
    ],
)
def test_a_malformed_log_is_one_clear_sentence(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_power_log(tmp_path / "m.csv")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"time,watts\n\xff\xfe\x00,1\n")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_power_log(tmp_path / "m.csv")
    with pytest.raises(FileError, match="cannot be read"):
        read_power_log(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("covered", [(0, 30), (5, 60)])
def test_a_window_that_the_log_does_not_reach_is_refused(tmp_path: Path, covered: tuple[int, int]) -> None:
    power = read_power_log(log(tmp_path / "m.csv", [(START + at, 20) for at in range(*covered)]))
    with pytest.raises(DataError, match="must cover the whole measurement"):
        with_power_log(measured(), power)


def test_a_gap_inside_a_window_is_refused_and_one_between_windows_is_not(tmp_path: Path) -> None:
    def without(first: int, last: int) -> dict[str, Any]:
        rows = [(START + at / 4, 20) for at in range(240) if not first < at / 4 < last]
        return with_power_log(measured(), read_power_log(log(tmp_path / "m.csv", rows)))

    assert without(12, 14)["measured"]["energy"]
    with pytest.raises(DataError, match=r"up to 6 s apart, at most 2\.5 s is needed"):
        without(15, 21)


def test_a_run_without_windows_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"measure\.energy_seconds"):
        with_power_log(full(), read_power_log(steady(tmp_path / "m.csv")))


def test_spoiled_windows_name_the_field(tmp_path: Path) -> None:
    results = measured()
    results["measured"]["energy_windows"][1]["end"] = 0.0
    with pytest.raises(FileError, match=r"energy_windows\.1"):
        with_power_log(results, read_power_log(steady(tmp_path / "m.csv")))


def test_the_results_given_are_not_changed(tmp_path: Path) -> None:
    results = measured()
    before = copy.deepcopy(results)
    with_power_log(results, read_power_log(steady(tmp_path / "m.csv")))
    with_assumed_watts(results, 15)
    assert results == before


def test_assumed_watts_are_an_estimate_and_say_so(tmp_path: Path) -> None:
    results = with_assumed_watts(full(), 15)
    assert results["energy"]["source"] == "estimate (15 W assumed)"
    assert results["energy"]["joules_per_inference"]["ours"] == pytest.approx(15 * 0.0139)
    assert results["energy"]["by_batch"]["32"]["ours"] == pytest.approx(15 * 0.345 / 32)
    write_report(results, tmp_path)
    assert "Estimated, not measured." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("watts", [0.0, -3.0, float("nan"), float("inf")])
def test_watts_that_are_no_power_are_refused(watts: float) -> None:
    with pytest.raises(SparsewrightError, match="watts above 0"):
        with_assumed_watts(full(), watts)


def test_a_meter_called_estimate_is_still_measured(tmp_path: Path) -> None:
    results = with_power_log(measured(), read_power_log(steady(tmp_path / "estimate.csv")))
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "power meter: estimate.csv" in text
    assert "Estimated, not measured." not in text


def test_the_command_writes_results_and_reports_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(measured()))
    meter = steady(tmp_path / "meter.csv")
    assert main(["report", str(tmp_path), "--power", str(meter)]) == 0
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["measured"]["energy"]["joules_per_inference"]["ours"] == pytest.approx(0.2)
    assert "power meter: meter.csv" in (tmp_path / "report.html").read_text()
    assert main(["report", str(tmp_path)]) == 0
    assert "power meter: meter.csv" in (tmp_path / "report.md").read_text()
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--power", str(meter), "--watts", "15"]) == 2
    assert "not both" in capsys.readouterr().err


def test_a_refused_log_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(measured()))
    before = (tmp_path / "results.json").read_bytes()
    assert main(["report", str(tmp_path), "--power", str(steady(tmp_path / "meter.csv", seconds=20))]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "results.json").read_bytes() == before
    assert not (tmp_path / "report.html").exists()
