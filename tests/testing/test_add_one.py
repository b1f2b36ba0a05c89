"""The pages "add a solver / layout / sparsifier" do what they say: one file and one line, and everything follows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_examples import write_package

PAGES = [
    ("add_a_solver.md", "one_of_m", "solvers"),
    ("add_a_layout.md", "coordinates", "layouts"),
    ("add_a_sparsifier.md", "diagonal", "sparsifiers"),
    ("add_a_schedule.md", "noisy", "training.schedules"),
]


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("page", "module", "kind"), PAGES)
def test_an_installed_package_is_found_through_its_entry_point(
    tmp_path: Path, page: str, module: str, kind: str
) -> None:
    write_package(tmp_path, page, module)
    registry = kind.rpartition(".")[2]
    code = (
        f"import sys; from sparsewright.{kind} import {registry}\n"
        f"assert {module!r} not in sys.modules, 'plug-ins are loaded by a look-up, not by an import'\n"
        f"assert {module!r} in {registry}.names()\n"
        f"assert type({registry}.get({module!r})).__module__ == {module!r}\n"
    )
    result = _python(tmp_path, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("page", "module", "kind"), PAGES)
def test_an_imported_file_registers_itself_and_meets_the_contract(
    tmp_path: Path, page: str, module: str, kind: str
) -> None:
    write_package(tmp_path, page, module)
    registry = kind.rpartition(".")[2]
    code = (
        f"import {module}, sys, pytest\n"
        f"from sparsewright.{kind} import {registry}\n"
        f"assert {module!r} in {registry}._classes\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_{module}.py']))\n"
    )
    result = _python(tmp_path, "-c", code)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
