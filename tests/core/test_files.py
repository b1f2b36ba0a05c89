"""Files are whole or absent."""

import errno
import stat
from pathlib import Path

import pytest

from sparsewright.core import FileError, atomic_write, read_json, write_json, write_text


def _fail_halfway(goal: Path, error: Exception) -> None:
    with atomic_write(goal) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_is_replaced_at_once_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    goal = tmp_path / "folder" / "plan.json"
    write_json(goal, {"b": 1, "a": [1, 2]})
    write_json(goal, {"b": 2})
    assert read_json(goal) == {"b": 2}
    assert [path.name for path in goal.parent.iterdir()] == ["plan.json"]


def test_an_error_keeps_the_earlier_file_and_removes_the_part(tmp_path: Path) -> None:
    goal = tmp_path / "report.txt"
    write_text(goal, "before")
    with pytest.raises(ZeroDivisionError):
        _fail_halfway(goal, ZeroDivisionError())
    assert goal.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]


def test_a_full_disk_is_one_clear_sentence_and_nothing_is_half_written(tmp_path: Path) -> None:
    goal = tmp_path / "report.txt"
    with pytest.raises(FileError, match="No space left"):
        _fail_halfway(goal, OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        write_text(tmp_path / "file" / "report.txt", "text")


def test_new_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "text")
    (tmp_path / "theirs").write_text("text")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "theirs")}
    assert len(modes) == 1


def test_nan_is_not_written_and_wrong_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b.json").write_text('{"a": ')
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(FileError, match="No such file"):
        read_json(tmp_path / "c.json")
