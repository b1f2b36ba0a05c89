"""What all verbs print with: JSON, tables, progress that is a bar on a terminal and plain lines elsewhere."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

# Lines in a log file: one when a stage begins or ends, else at most one in so many seconds.
_LINE_EVERY_S = 10.0


def print_json(value: Any) -> None:
    """Print plain data as JSON; what is not finite becomes null, what is no JSON its text."""
    print(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print rows; numbers to the right."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(
        title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], int | float) or row[number] in ("", "-") for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table, markup=False, highlight=False)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@final
class StageProgress:
    """Takes `(stage, what, share done)` and shows it on standard error."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, float] = {}
        self._printed: dict[str, float] = {}

    def __call__(self, stage: str, what: str, share: float) -> None:
        """Show that `share` (0..1) of a stage is done."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=1.0, what=what)
            self._bars.update(self._tasks[stage], completed=share, what=what)
            return
        now = time.monotonic()
        began = self._began.setdefault(stage, now)
        due = now - self._printed.get(stage, -_LINE_EVERY_S) >= _LINE_EVERY_S
        if due or share >= 1.0:
            self._printed[stage] = now
            left = f", {(now - began) * (1 - share) / share:.0f} s left" if 0.02 < share < 1.0 else ""
            print(f"{stage}: {what} ({100 * share:.0f} %{left})", file=sys.stderr, flush=True)

    def bar(self, stage: str, what: str) -> Callable[[float], None] | None:
        """For short work: takes the share done on a terminal; None elsewhere, where lines would only be noise."""
        return None if self._bars is None else lambda share: self(stage, what, share)

    def steps(self, stage: str) -> Any:
        """The same for callers that report `(done, total, what)`."""
        return lambda done, total, what: self(stage, str(what), done / max(1, total))


@contextmanager
def stage_progress(quiet: bool = False) -> Iterator[StageProgress]:
    """Progress for the block: bars with the time left on a terminal, plain lines elsewhere.

    Args:
        quiet: plain lines even on a terminal (so that `--json` output can be read beside it).
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield StageProgress(None)
        return
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield StageProgress(bars)
