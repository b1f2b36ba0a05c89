"""Every benchmark can be imported, so that a name that moved is noticed before a record is wanted."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_benchmark_can_be_imported():
    names = [f"benchmarks.{path.stem}" for path in sorted((ROOT / "benchmarks").glob("bench_*.py"))]
    assert len(names) > 10
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
