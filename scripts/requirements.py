"""Print the requirements of this project with the named extras, one per line, for `pip install -r`.

Installing the requirements before the package itself keeps the native build apart from dependency resolution.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(extras: list[str]) -> list[str]:
    """Flatten the project's dependencies and the extras, following references such as `sparsewright[hf]`."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    found: list[str] = list(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for line in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
            if own:
                waiting += own.group(1).split(",")
            else:
                found.append(line)
    return sorted(set(found))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
