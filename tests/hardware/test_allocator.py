"""Freed memory stays in the process, so that it costs no page faults twice."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from sparsewright.hardware import keep_freed_memory
took = keep_freed_memory()
for _ in range(2):
    for _ in range(4): torch.ones(3_000_000); torch.ones(2_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(3_000_000); torch.ones(2_000_000)
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_was_freed_is_used_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    took, faults = done.stdout.split()
    if took == "False":
        pytest.skip("the C library is not glibc")
    # 20 MB in pages of 4 KB would be 5,000.
    assert int(faults) < 500
