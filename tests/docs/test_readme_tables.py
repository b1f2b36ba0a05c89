"""README and the page on masks say what the kept tables say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_readme_tables as tables


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_pages_have_the_figures_of_the_records(path):
    assert tables.page(path) == path.read_text(encoding="utf-8"), "run scripts/make_readme_tables.py"


def test_a_changed_figure_is_noticed(tmp_path, monkeypatch):
    text = tables.README.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `1:16x16` |"))
    changed = tmp_path / "README.md"
    changed.write_text(text.replace(row, row.replace(".", "9.")), encoding="utf-8")
    monkeypatch.setitem(tables.PAGES, changed, tables.PAGES[tables.README])
    assert tables.page(changed) == text
