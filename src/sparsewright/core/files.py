"""Files that are either whole or absent: written beside the goal, flushed to disk, then renamed over it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import FileError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the goal's folder; on success flush it and rename it over `path`.

    On any error the temporary file is removed and an earlier `path` stays as it was.

    Raises:
        FileError: the goal is a device or a pipe, its folder cannot be made or is read-only, or the disk is full.
    """
    # Through links, so that a link goes on pointing at what is new.
    goal = Path(os.path.realpath(path))
    if goal.exists() and not goal.is_file() and not goal.is_dir():
        raise FileError(f"{path} is a device or a pipe, not a file, and would be replaced. Choose a file.")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{goal.name}.", suffix=".part", dir=goal.parent)
        os.close(handle)
    except OSError as error:
        raise file_error(error, goal) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files private; a result is as readable as any other file of its owner.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(goal)
        flush_folder(goal.parent)
    except OSError as error:
        raise file_error(error, goal) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut (where the system lets folders be opened)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_error(error: OSError, path: Path) -> FileError:
    """One sentence for a failed read or write."""
    wrong_path = isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError | FileNotFoundError)
    advice = "Check the path" if wrong_path or path.is_dir() else "Free some space or choose a folder you may write to"
    return FileError(f"{path} cannot be read or written: {error.strerror or error}. {advice}; nothing was changed.")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically, readable and with a stable key order; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
        FileError: missing, unreadable, or not JSON (with the position).
    """
    goal = Path(path)
    try:
        return json.loads(goal.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{goal} cannot be read: {error.strerror or error}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{goal} is not valid JSON ({error}). It may be truncated; restore or delete it.") from error
