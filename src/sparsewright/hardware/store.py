"""The cache of measured costs: one SQLite file in the user's cache folder, keyed by fingerprint and versions.

Rows of another machine or of other versions stay in the file and are never mixed in: they come back when the machine or
the version does.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import final

from ..core import FileError, ProfileError
from .fingerprint import Machine
from .profile import CostRow, Profile, age_days, now

_SCHEMA = """
CREATE TABLE IF NOT EXISTS costs (
    fingerprint TEXT, versions TEXT, threads INTEGER, out INTEGER, in_ INTEGER, pattern TEXT, value_dtype TEXT,
    tokens INTEGER, seconds REAL, dense_seconds REAL, low REAL, high REAL, rounds INTEGER, created TEXT,
    PRIMARY KEY (fingerprint, versions, threads, out, in_, pattern, value_dtype, tokens)
)
"""
_COLUMNS = "out, in_, pattern, value_dtype, tokens, seconds, dense_seconds, low, high, rounds"


def cache_folder() -> Path:
    """`SPARSEWRIGHT_CACHE`, else `sparsewright` in the user's cache folder."""
    chosen = os.environ.get("SPARSEWRIGHT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsewright"


@final
class CostStore:
    """Measured costs on disk.

    Args:
        path: the SQLite file; default `profile.sqlite` in the cache folder.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else cache_folder() / "profile.sqlite"

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=30)
            with contextlib.closing(connection), connection:
                connection.execute(_SCHEMA)
                yield connection
        except OSError as error:
            raise FileError(
                f"The profile cache {self.path} cannot be opened: {error.strerror or error}. "
                "Set SPARSEWRIGHT_CACHE to a folder you may write to."
            ) from error
        except sqlite3.Error as error:
            raise ProfileError(
                f"The profile cache {self.path} cannot be used ({error}). Delete it, or set SPARSEWRIGHT_CACHE to "
                "another folder; it is measured again."
            ) from error

    def read(self, machine: Machine, threads: int, max_age_days: float) -> Profile:
        """All rows of this machine, these versions and this thread count that are young enough; maybe none."""
        with self._open() as connection:
            found = connection.execute(
                f"SELECT {_COLUMNS}, created FROM costs WHERE fingerprint = ? AND versions = ? AND threads = ? "
                "ORDER BY rowid",
                (machine.fingerprint, machine.versions, threads),
            ).fetchall()
        young = [row for row in found if age_days(row[-1]) <= max_age_days]
        rows = tuple(CostRow((row[0], row[1]), *row[2:-1]) for row in young)
        created = max((row[-1] for row in young), default=now())
        return Profile(machine.to_data(), machine.fingerprint, machine.versions, created, threads, rows)

    def why_stale(self, machine: Machine, threads: int, max_age_days: float) -> list[str]:
        """Why the cache's rows do not speak for this machine now; empty if some do, or if there are none at all."""
        with self._open() as connection:
            kinds = connection.execute(
                "SELECT DISTINCT fingerprint, versions, threads, max(created) FROM costs GROUP BY 1, 2, 3"
            ).fetchall()
        reasons = []
        for fingerprint, versions, row_threads, created in kinds:
            if fingerprint != machine.fingerprint:
                reasons.append("rows of another machine")
            elif versions != machine.versions:
                reasons.append(f"rows made with {versions}")
            elif row_threads != threads:
                reasons.append(f"rows for {row_threads} threads")
            elif age_days(created) > max_age_days:
                reasons.append(f"rows older than {max_age_days:g} days")
            else:
                return []
        return sorted(set(reasons))

    def write(self, profile: Profile, rows: list[CostRow]) -> None:
        """Add or replace rows of the profile's machine, versions and threads; all or nothing."""
        head = (profile.fingerprint, profile.versions, profile.threads)
        created = now()
        with self._open() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO costs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (*head, *row.shape, row.pattern, row.value_dtype, row.tokens, row.seconds, row.dense_seconds)
                    + (row.low, row.high, row.rounds, created)
                    for row in rows
                ],
            )

    def forget(self, machine: Machine) -> None:
        """Remove this machine's rows, whatever their version."""
        with self._open() as connection:
            connection.execute("DELETE FROM costs WHERE fingerprint = ?", (machine.fingerprint,))
