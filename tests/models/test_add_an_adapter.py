"""The page "add an adapter" does what it says: file and test run as they stand, and its entry point is found."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "add_an_adapter.md"


def write_page(folder: Path) -> None:
    blocks = dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL))
    for name in ("two_towers.py", "test_two_towers.py"):
        (folder / name).write_text(blocks[name])
    installed = folder / "two_towers_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: two-towers-plugin\nVersion: 1.0\n")
    group, name, target = re.search(
        r'entry-points\."([\w.]+)"\]\n(\w+) = "my_package\.([\w.:]+)"', blocks["pyproject.toml"]
    ).groups()
    (installed / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), *(path for path in sys.path if path.endswith("src"))])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_an_installed_adapter_is_found_and_meets_the_contract(tmp_path: Path) -> None:
    write_page(tmp_path)
    found = (
        "import sys; from sparsewright.models import adapters\n"
        "assert 'two_towers' not in sys.modules\n"
        "assert 'two_towers' in adapters.names()\n"
        "assert type(adapters.get('two_towers')).__module__ == 'two_towers'\n"
        "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_two_towers.py']))\n"
    )
    result = python(tmp_path, "-c", found)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 passed" in result.stdout
