"""Commands on a private little disk: a tmpfs in a mount namespace of its own, gone with the process.

Everybody is root in a container, so folder permissions stop nobody; a file system of a given size, or mounted
read-only, does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How the commands on the little disk ended.

    Attributes:
        codes: exit code of each command.
        err: standard error of all, in order.
        files: names and sizes on the disk after the last.
    """

    codes: tuple[int, ...]
    err: str
    files: dict[str, int]

    @property
    def sentences(self) -> list[str]:
        """The lines of refusals."""
        return [line for line in self.err.splitlines() if line.startswith("sparsewright: ")]


@cache
def why_no_mount() -> str:
    """Why a private file system cannot be mounted here; empty if it can."""
    if not sys.platform.startswith("linux"):
        return "mount namespaces are Linux's"
    try:
        tried = subprocess.run(
            ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"], capture_output=True, text=True
        )
    except OSError as error:
        return f"unshare cannot be run: {error}"
    return "" if tried.returncode == 0 else f"mounting is refused here: {tried.stderr.strip()}"


# Runs inside the namespace: mounts, then all commands in one process, so that torch is imported once.
_DRIVER = """
import json, os, subprocess, sys
disk, size, seed, commands = json.loads(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
if seed:
    subprocess.run(["cp", "-r", f"{seed}/.", disk], check=True)
os.chdir(disk)
sys.path.insert(0, disk)
from sparsewright.cli import main
codes = []
for command in commands:
    if command[0] == "mount":
        codes.append(subprocess.run(["mount", "-o", f"remount,{command[1]}", disk]).returncode)
    else:
        codes.append(main(command))
files = {}
for folder, _, names in os.walk("."):
    for name in names:
        path = os.path.join(folder, name)
        files[os.path.relpath(path)] = os.path.getsize(path)
print("ended=" + json.dumps([codes, files]))
"""


def on_small_disk(disk: Path, size: str, commands: Sequence[Sequence[str]], seed: Path | None = None) -> Ended:
    """Run commands of the command line on a little disk.

    Args:
        disk: an empty folder to mount on; also the working folder.
        size: of the disk, for instance `200k`.
        commands: arguments of `sparsewright`; `("mount", OPTIONS)` changes the disk instead.
        seed: files that are copied there first.
    """
    path = os.pathsep.join([str(ROOT / "tests" / "pipeline"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    told = json.dumps([str(disk), size, str(seed or ""), [list(command) for command in commands]])
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _DRIVER, told],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    ended = [line for line in done.stdout.splitlines() if line.startswith("ended=")]
    assert ended, done.stderr
    codes, files = json.loads(ended[0].removeprefix("ended="))
    return Ended(tuple(codes), done.stderr, files)
