"""Progress is plain lines when nobody watches, with the time that is left."""

import json

import pytest

from sparsewright.cli.console import print_json, print_table, stage_progress
from sparsewright.cli.parse import counts, shapes
from sparsewright.core import DataError


def test_plain_lines_say_stage_share_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_progress() as progress:
        progress("search", "started", 0.0)
        for step in range(1, 100):
            progress("search", f"plan {step}", step / 100)
        progress("search", "done", 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["search: started (0 %)", "search: done (100 %)"]


def test_lines_between_tell_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 30.0, 31.0])
    monkeypatch.setattr("sparsewright.cli.console.time.monotonic", lambda: next(now))
    with stage_progress() as progress:
        progress("recover", "started", 0.0)
        progress("recover", "loss 1", 0.5)
        progress("recover", "loss 0.9", 0.51)
    assert capsys.readouterr().err.splitlines()[1:] == ["recover: loss 1 (50 %, 30 s left)"]


def test_json_has_no_nan_and_no_foreign_objects(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": (1, 2.5), 3: {"c": None}, "d": object})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, 2.5], "3": {"c": None}, "d": str(object)}


def test_tables_align_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "bytes"), [("a", 1000), ("b", 5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].rstrip().endswith("1,000")
    assert lines[2].rstrip().endswith("5")


def test_lists_in_options() -> None:
    assert counts("1, 32") == [1, 32]
    assert shapes("768x768,3072X768") == [(768, 768), (3072, 768)]
    for bad in ("", "1,x", "0", "-1"):
        with pytest.raises(DataError, match="whole numbers"):
            counts(bad)
    for bad in ("768", "768x", "0x4", "axb"):
        with pytest.raises(DataError, match="OUTxIN"):
            shapes(bad)
