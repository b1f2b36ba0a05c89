"""README says what the kept tables say."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_readme_tables as tables


def test_readme_has_the_figures_of_the_records():
    text = tables.README.read_text(encoding="utf-8")
    assert tables.page(text) == text, "run scripts/make_readme_tables.py"


def test_a_changed_figure_is_noticed():
    text = tables.README.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `1:16x16` |"))
    assert tables.page(text.replace(row, row.replace(".", "9."))) == text
