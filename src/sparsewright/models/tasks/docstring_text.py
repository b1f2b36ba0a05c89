"""Docstrings as text: harvested from source files by parsing, never by importing.

Importing third-party modules would run their code; `ast` only reads. Order depends on the file names, their content and
the seed alone, never on the clock, so that the same installation gives the same text.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "testing", "__pycache__", "node_modules"}
)
LARGEST_FILE_BYTES = 1_000_000
SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z`'\"(<\[]|\s*$)")
SHORTEST_QUERY_WORDS = 3
SHORTEST_TARGET_WORDS = 8


@dataclass(frozen=True)
class Docstring:
    """One docstring, cut in two.

    Attributes:
        package: top-level package or module, e.g. `asyncio`.
        name: where it stands, e.g. `asyncio/events.py:42`.
        query: the first sentence, white space joined.
        target: the rest, white space joined; may be empty.
    """

    package: str
    name: str
    query: str
    target: str

    @property
    def is_item(self) -> bool:
        """Whether both halves are long enough to be looked for and found."""
        return len(self.query.split()) >= SHORTEST_QUERY_WORDS and len(self.target.split()) >= SHORTEST_TARGET_WORDS


def split_sentence(docstring: str) -> tuple[str, str]:
    """The first sentence and the rest; the sentence ends with its paragraph at the latest."""
    paragraph = docstring.split("\n\n", 1)[0]
    found = SENTENCE_END.search(paragraph)
    end = found.end() if found else len(paragraph)
    return " ".join(docstring[:end].split()), " ".join(docstring[end:].split())


def docstrings_of(path: Path, root: Path) -> Iterator[Docstring]:
    """Every docstring of one source file, in source order; nothing where it cannot be parsed."""
    relative = path.relative_to(root)
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another project's invalid escapes are not our user's concern
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # templates and files for other Python versions are part of every installation
    package = relative.parts[0].removesuffix(".py")
    for node in documented(tree):
        text = ast.get_docstring(node)
        if text:
            query, target = split_sentence(text)
            yield Docstring(package, f"{relative.as_posix()}:{getattr(node, 'lineno', 1)}", query, target)


def documented(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Modules, classes and functions in source order; bodies of functions are not entered (slow, and nearly bare)."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    if isinstance(node, ast.Module | ast.ClassDef | ast.If | ast.Try | ast.With):
        for part in ("body", "handlers", "orelse", "finalbody"):
            for child in getattr(node, part, ()):
                yield from documented(child)


def source_files(root: Path) -> list[Path]:
    """Python files under `root`, without tests and installed packages, in alphabetical order."""
    return [
        path for path in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    ]


def standard_library() -> list[Docstring]:
    """Items of the standard library of the running Python; later copies of a query or a target are dropped."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    items: list[Docstring] = []
    for path in source_files(root):
        for item in docstrings_of(path, root):
            if item.is_item and item.query not in seen and item.target not in seen:
                seen.update((item.query, item.target))
                items.append(item)
    return items


def shuffled(names: list[str], seed: int) -> list[str]:
    """The names in an order that the seed fixes and that one more or one less name leaves alone."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))


def installed_docstrings(seed: int, most_files: int, most_texts: int) -> list[Docstring]:
    """Docstrings of the installed packages.

    Args:
        seed: fixes which files are read first.
        most_files: files read at most.
        most_texts: docstrings kept at most.

    Returns:
        Docstrings without copies; their `package` is the installed package.
    """
    roots = sorted({Path(sysconfig.get_paths()[key]) for key in ("purelib", "platlib")})
    files = {path.relative_to(root).as_posix(): (path, root) for root in roots for path in installed_files(root)}
    seen: set[str] = set()
    kept: list[Docstring] = []
    for name in shuffled(list(files), seed)[:most_files]:
        for item in docstrings_of(*files[name]):
            text = f"{item.query} {item.target}"
            if item.is_item and text not in seen:
                seen.add(text)
                kept.append(item)
                if len(kept) == most_texts:
                    return kept
    return kept


def installed_files(root: Path) -> Iterator[Path]:
    """Python files of every package under a site-packages folder, tests left out."""
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not SKIPPED_FOLDERS.intersection(parts) and not parts[0].startswith("_"):
            yield path
