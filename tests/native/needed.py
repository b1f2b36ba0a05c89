"""Programs that a test needs and that a machine may lack."""

import shutil

import pytest


def tool(*names: str) -> str:
    """Path of the first of these programs that there is, or skip."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip(f"{' or '.join(names)} is not installed")
