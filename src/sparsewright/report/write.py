"""Write the report beside its results: one HTML page, one Markdown file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import write_text
from .compose import compose
from .markdown import render_markdown, render_summary
from .page import render_page
from .schema import read_results


def write_report(results: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write `report.html` and `report.md` into a run folder; each is either whole or absent.

    Nothing is measured here: every figure is read from `results`, or is a ratio of two of them.

    Args:
        results: the content of `results.json`; absent sections read "not measured".
        folder: made if missing.

    Returns:
        The written paths.

    Raises:
        FileError: the results have another form (the message names the field), or the folder cannot be written.
    """
    document = compose(read_results(results))
    page, text = Path(folder) / "report.html", Path(folder) / "report.md"
    write_text(page, render_page(document, results))
    write_text(text, render_markdown(document))
    return [page, text]


def summary(results: Mapping[str, Any]) -> str:
    """One page for a meeting, as Markdown that also reads well in a terminal.

    Args:
        results: the content of `results.json`.

    Raises:
        FileError: the results have another form.
    """
    return render_summary(read_results(results))
