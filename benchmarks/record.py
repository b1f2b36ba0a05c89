"""What every table says of where it was made, and how it is written: whole or not at all."""

import csv
import datetime
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import sparsewright
from sparsewright._native import instruction_set
from sparsewright.core import write_text
from sparsewright.hardware import this_machine

RESULTS = Path(__file__).parent / "results"


def where() -> dict[str, object]:
    """Machine, versions and date, the last columns of a row."""
    machine = this_machine()
    return {
        "cpu": machine.cpu,
        "instruction_set": instruction_set(),
        "threads": 1,
        "torch": machine.torch,
        "sparsewright": sparsewright.__version__,
        "kernels": machine.kernels,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table as CSV; the columns are those of the first row."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    print(f"wrote {path}")
