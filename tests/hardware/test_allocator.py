"""Freed memory stays in the process, so that it costs no page faults twice; or goes back at once, on request."""

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


RETURNED = """
import torch
from pathlib import Path
from sparsewright.hardware import return_freed_memory, trim_heap
def resident(): return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])
took = return_freed_memory()
torch.ones(6_000_000)
before = resident()
# Small tensors that live on between large ones that go.
large, small = [], []
for _ in range(40): large.append(torch.ones(100_000)); small.append(torch.ones(100))
del large
trim_heap()
print(took, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_that_was_freed_goes_back_at_once_on_request():
    done = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True)
    took, kib = done.stdout.split()
    if took == "False":
        pytest.skip("the C library is not glibc")
    # The large ones were 16 MB.
    assert int(kib) < 2000
