"""The code of the "add a ..." pages as a real package: written to files, with a real entry point."""

import re
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs"


def page_file(page: str, title: str) -> str:
    """The code block of a page that carries this title."""
    text = (PAGES / page).read_text(encoding="utf-8")
    match = re.search(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    assert match, f"{page} has no block titled {title}"
    return match.group(1)


def write_package(folder: Path, page: str, module: str) -> None:
    """A module and its test as the page shows them, and an installed distribution that names the entry point."""
    (folder / f"{module}.py").write_text(page_file(page, f"{module}.py"), encoding="utf-8")
    (folder / f"test_{module}.py").write_text(page_file(page, f"test_{module}.py"), encoding="utf-8")
    declared = page_file(page, "pyproject.toml")
    group = re.search(r'entry-points\."([\w.]+)"', declared)
    line = re.search(r'^(\w+) = "my_package\.([\w.:]+)"$', declared, re.MULTILINE)
    assert group, declared
    assert line, declared
    installed = folder / f"{module}_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{group.group(1)}]\n{line.group(1)} = {line.group(2)}\n")
