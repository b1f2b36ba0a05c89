"""The item list of documentation retrieval: written once, with its sha256, and reread ever after.

Python's docstrings differ between versions, so a list that was made anew could silently be another task. Splits are
disjoint by top-level module: no two splits share a package.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...core import DataError, atomic_write, read_json, write_json
from .docstring_text import Docstring, installed_docstrings, shuffled, standard_library

SPLITS = ("calibration", "validation", "test")
LONGEST_TEXT_CHARACTERS = 1000
"""Unlabelled texts are cut here: more than any recovery step reads, and tokenising chapters takes time."""

ItemsBySplit = dict[str, list[Docstring]]


def assign_splits(items: Sequence[Docstring], seed: int, validation: int, test: int) -> ItemsBySplit:
    """Share the packages out until validation and test hold their least number of items.

    Args:
        items: all items.
        seed: fixes the order of the packages.
        validation: least number of validation items.
        test: least number of test items.

    Returns:
        Items per split; what validation and test did not need is for calibration.

    Raises:
        DataError: there are too few items.
    """
    packages: dict[str, list[Docstring]] = {}
    for item in items:
        packages.setdefault(item.package, []).append(item)
    splits: ItemsBySplit = {name: [] for name in SPLITS}
    wanted = {"validation": validation, "test": test}
    for package in shuffled(list(packages), seed):
        # The split that lacks the larger share of its number comes next, so that both get large and small packages.
        lack = {name: 1 - len(splits[name]) / count for name, count in wanted.items() if len(splits[name]) < count}
        chosen = max(lack, key=lambda name: lack[name]) if lack else "calibration"
        splits[chosen] += packages[package]
    for name, count in wanted.items():
        if len(splits[name]) < count:
            raise DataError(
                f"Documentation retrieval needs {validation} validation and {test} test items, but the library "
                f"of this Python ({platform.python_version()}) has {len(items)} in all. Install its full library "
                "(on Debian: python3-full), or lower `validation_items` and `test_items`."
            )
    return splits


def load_items(folder: Path, seed: int, validation: int, test: int) -> tuple[ItemsBySplit, dict[str, Any]]:
    """The item list of this folder, made when there is none.

    Returns:
        Items per split, and the facts that were stored with them (`sha256`, `python`, `seed`, counts).

    Raises:
        DataError: the list was changed after it was written, or belongs to other options.
    """
    path, facts_path = folder / "items.jsonl", folder / "items.json"
    asked = {"seed": seed, "validation_items": validation, "test_items": test}
    if not facts_path.exists():
        splits = assign_splits(standard_library(), seed, validation, test)
        rows = [{"split": name, **asdict(item)} for name in SPLITS for item in splits[name]]
        digest = write_rows(path, rows)
        counts = {name: len(splits[name]) for name in SPLITS}
        write_json(facts_path, {"sha256": digest, "python": platform.python_version(), "counts": counts, **asked})
    facts, rows = read_rows(path, facts_path, asked)
    loaded: ItemsBySplit = {name: [] for name in SPLITS}
    for row in rows:
        loaded[row.pop("split")].append(Docstring(**row))
    return loaded, facts


def load_recovery_texts(
    folder: Path, items: ItemsBySplit, seed: int, most_files: int, most_texts: int
) -> tuple[list[str], dict[str, Any]]:
    """Unlabelled text for calibration and recovery, made when the folder has none.

    The calibration split's items and docstrings of the installed packages, both halves of each as texts of their own,
    since the task encodes halves. Texts that also stand in validation or test are dropped.

    Returns:
        The texts, and the facts that were stored with them (`sha256`, counts).

    Raises:
        DataError: the list was changed after it was written, or belongs to other options.
    """
    path, facts_path = folder / "texts.jsonl", folder / "texts.json"
    asked = {"seed": seed, "most_files": most_files, "most_texts": most_texts}
    if not facts_path.exists():
        held_out = {half for name in ("validation", "test") for item in items[name] for half in halves(item)}
        sources = {"calibration": items["calibration"], "installed": installed_docstrings(seed, most_files, most_texts)}
        seen = set(held_out)
        made: list[dict[str, Any]] = []
        counts = dict.fromkeys(sources, 0)
        for source, docstrings in sources.items():
            for item in docstrings:
                # A docstring that shares a half with a held-out item is a copy of it: both halves go.
                if any(half in held_out for half in halves(item)):
                    continue
                for half in halves(item):
                    if half not in seen:
                        seen.add(half)
                        made.append({"source": source, "text": half[:LONGEST_TEXT_CHARACTERS]})
                        counts[source] += 1
        digest = write_rows(path, made)
        write_json(facts_path, {"sha256": digest, "counts": counts, **asked})
    facts, rows = read_rows(path, facts_path, asked)
    return [row["text"] for row in rows], facts


def halves(item: Docstring) -> tuple[str, str]:
    """Query and target."""
    return item.query, item.target


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines atomically; the sha256 of the file's bytes comes back."""
    content = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_rows(path: Path, facts_path: Path, asked: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read JSON lines and the facts beside them.

    Raises:
        DataError: the file is gone, was changed after it was written, or belongs to other options.
    """
    facts = read_json(facts_path)
    other = [name for name, value in asked.items() if facts.get(name) != value]
    if other:
        raise DataError(
            f"{path} was written for {', '.join(f'{name}={facts.get(name)}' for name in other)}, the recipe asks for "
            f"{', '.join(f'{name}={asked[name]}' for name in other)}. Use another folder, or delete the list there."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Delete {facts_path} to make it anew.") from error
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise DataError(
            f"{path} is not the list that {facts_path} tells of (its sha256 differs). Restore it, or delete both."
        )
    return facts, [json.loads(line) for line in content.decode().splitlines()]
