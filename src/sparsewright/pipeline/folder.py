"""The run folder: stages that ran are found again, whatever killed the process in between.

Each stage leaves one JSON file, written atomically after its other files, with the hash of everything it depends on.
A stage is skipped when its file is there, its hash is the same and the files it names are whole.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from ..core import FileError, file_error, read_json, write_json

Report = Callable[[str, str, float], None]
"""Progress: stage name, what is going on, share done 0..1."""


def digest(value: Any) -> str:
    """Hex sha256 of plain data, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def silent(stage: str, what: str, share: float) -> None:
    """Progress for callers who want none."""


@final
class RunFolder:
    """One run on disk.

    Args:
        path: made when missing.
        fresh: forget earlier stages.
        report: told about progress.
    """

    def __init__(self, path: Path, fresh: bool = False, report: Report = silent) -> None:
        self.path = path
        self.report = report
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        try:
            (path / "stages").mkdir(parents=True, exist_ok=True)
            if fresh:
                for old in (path / "stages").iterdir():
                    old.unlink()
        except OSError as error:
            raise file_error(error, path) from error

    def file(self, name: str) -> Path:
        """Path of a file that belongs to the stages, not to the results."""
        return self.path / "stages" / name

    def stage(
        self, name: str, depends: Any, work: Callable[[], Mapping[str, Any]], files: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The stage's plain result, from disk if it ran with the same dependencies, else by doing the work.

        Args:
            name: also the name of its JSON file.
            depends: plain data; any change makes the stage run again.
            work: returns plain data; may write the files below.
            files: names under `stages/` that the work writes; checked by sha256 before they are used again.
        """
        key = digest(depends)
        kept = self._kept(name, key)
        if kept is not None:
            self.reused.append(name)
            self.seconds[name] = float(kept["seconds"])
            self.event("reused", stage=name)
            self.report(name, "already done", 1.0)
            return dict(kept["result"])
        self.event("started", stage=name)
        self.report(name, "started", 0.0)
        began = time.monotonic()
        result = json.loads(json.dumps(work()))
        self.seconds[name] = time.monotonic() - began
        row = {
            "key": key,
            "seconds": self.seconds[name],
            "result": result,
            "files": {file: file_digest(self.file(file)) for file in files},
        }
        write_json(self.file(f"{name}.json"), row)
        self.event("finished", stage=name, seconds=round(self.seconds[name], 3))
        self.report(name, "done", 1.0)
        return dict(result)

    def _kept(self, name: str, key: str) -> dict[str, Any] | None:
        path = self.file(f"{name}.json")
        if not path.exists():
            return None
        try:
            row = read_json(path)
        except FileError:
            # Truncated by a fault of the disk: the stage runs again.
            return None
        whole = isinstance(row, dict) and row.get("key") == key and isinstance(row.get("result"), dict)
        if not whole:
            return None
        for file, expected in row["files"].items():
            if not self.file(file).exists() or file_digest(self.file(file)) != expected:
                return None
        return dict(row)

    def event(self, what: str, **facts: Any) -> None:
        """Append one line to `events.jsonl`; the log may end in a half line after a kill, readers skip it."""
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": what, **facts})
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise file_error(error, self.path / "events.jsonl") from error
