"""Stages are found again only when they are whole and depend on the same things."""

from pathlib import Path

from sparsewright.pipeline.folder import RunFolder


def run_twice(path: Path, first: object, second: object) -> list[int]:
    """How often the work ran in a first and a second process with these dependencies."""
    calls: list[int] = []
    for depends in (first, second):
        folder = RunFolder(path)
        folder.stage("work", depends, lambda: calls.append(1) or {"n": 1})
    return calls


def test_a_stage_with_the_same_dependencies_runs_once(tmp_path: Path) -> None:
    assert run_twice(tmp_path, {"a": 1, "b": 2}, {"b": 2, "a": 1}) == [1]


def test_a_stage_runs_again_when_a_dependency_changes(tmp_path: Path) -> None:
    assert run_twice(tmp_path, {"a": 1}, {"a": 2}) == [1, 1]


def test_a_truncated_stage_file_runs_again(tmp_path: Path) -> None:
    RunFolder(tmp_path).stage("work", 1, lambda: {"n": 1})
    record = tmp_path / "stages" / "work.json"
    record.write_bytes(record.read_bytes()[:20])
    assert RunFolder(tmp_path).stage("work", 1, lambda: {"n": 2}) == {"n": 2}


def test_a_changed_file_of_a_stage_runs_it_again(tmp_path: Path) -> None:
    def work(folder: RunFolder, text: str) -> dict[str, str]:
        folder.file("data").write_text(text)
        return {"text": text}

    for text in ("first", "second"):
        folder = RunFolder(tmp_path)
        folder.stage("work", 1, lambda folder=folder, text=text: work(folder, text), files=("data",))
        assert folder.stage("work", 1, lambda: {"text": "never"}, files=("data",)) == {"text": text}
        (tmp_path / "stages" / "data").write_text("spoiled")


def test_fresh_forgets_earlier_stages(tmp_path: Path) -> None:
    RunFolder(tmp_path).stage("work", 1, lambda: {"n": 1})
    assert RunFolder(tmp_path, fresh=True).stage("work", 1, lambda: {"n": 2}) == {"n": 2}
