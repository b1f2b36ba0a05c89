"""What the documentation shows works: its Python runs, its recipes are read, its commands exist, its tables are true.

Every `python` block of a page runs in order in one namespace, in a folder of its own. A block with a title is a file:
it is written there and imported. A block after the line `<!-- not executed: reason -->` is left out; the reason must be
there.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsewright.pipeline import load_recipe
from sparsewright.pipeline.recipe import read_yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if path.exists())
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"<!-- not executed: *(?P<reason>.*?) *-->\s*$")


@dataclass(frozen=True)
class Example:
    """One fenced block."""

    page: Path
    line: int
    language: str
    body: str
    title: str
    skipped: str | None


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 2
        body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        title = re.search(r'title="([^"]+)"', match["rest"])
        skipped = mark["reason"] if mark else None
        found.append(Example(page, line, match["language"], body, title[1] if title else "", skipped))
    return found


ALL = [example for page in PAGES for example in examples(page)]


def name_of(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(e.page == page and e.language == "python" for e in ALL)], ids=name_of
)
def test_the_python_of_every_page_runs(page: Path, tmp_path: Path) -> None:
    blocks = [e for e in ALL if e.page == page and e.language == "python" and e.skipped is None]
    # Blank lines up front keep the page's own line numbers in tracebacks.
    script = ["import sys", "sys.path.insert(0, '.')"]
    for block in blocks:
        if block.title:
            (tmp_path / block.title).write_text(block.body, encoding="utf-8")
            script.append(f"import {Path(block.title).stem}")
            continue
        script.append(f"exec(compile({chr(10) * (block.line - 1) + block.body!r}, {str(page)!r}, 'exec'), globals())")
    environment = {
        **os.environ,
        "SPARSEWRIGHT_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    (tmp_path / "page.py").write_text("\n".join(script), encoding="utf-8")
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_block_that_is_not_executed_says_why() -> None:
    assert [f"{e.page.name}:{e.line}" for e in ALL if e.skipped == ""] == []


def recipes() -> list[Example]:
    """YAML blocks that are whole recipes: they name a model."""
    return [e for e in ALL if e.language == "yaml" and re.search(r"^model:", e.body, re.MULTILINE)]


@pytest.mark.parametrize("example", recipes(), ids=lambda example: f"{example.page.stem}:{example.line}")
def test_every_recipe_shown_is_a_valid_recipe(example: Example) -> None:
    load_recipe(read_yaml(example.body))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=name_of)
def test_every_recipe_among_the_examples_is_valid(path: Path) -> None:
    load_recipe(path)


def commands_of(page: Path) -> str:
    """The shell blocks of a page and the commands between its backticks."""
    inline = re.findall(r"`sparsewright [^`\n]+`", page.read_text(encoding="utf-8"))
    return "\n".join([e.body for e in ALL if e.page == page and e.language in ("sh", "bash")] + inline)


def test_every_command_shown_exists() -> None:
    from typer.main import get_command

    from sparsewright.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = {
        verb
        for page in PAGES
        for verb in re.findall(r"(?:^|`)sparsewright ([a-z]+)\b", commands_of(page), re.MULTILINE)
    }
    assert shown - known == set()


def test_the_generated_tables_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "make_docs_tables.py"), "--check"], check=False)
    assert done.returncode == 0, "Run: python scripts/make_docs_tables.py"


def test_every_page_stands_in_the_navigation_and_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # Nothing that a browser fetches by itself may come from another host; links that a reader follows may.
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)"', text)
        assert fetched == [], page
