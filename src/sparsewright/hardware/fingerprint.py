"""What machine this is, and a fingerprint of what decides speed: a profile is only true on the machine it was made on.

The fingerprint covers the processor, its instruction sets, cores and caches. Versions (torch, this package, the native
library) are kept beside it, because an upgrade makes a profile stale without making it another machine.
"""

import functools
import hashlib
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy
import torch

# The flags that kernels choose by; the others of /proc/cpuinfo do not change speed.
_ISA_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimd",
    "asimddp",
    "asimdhp",
    "sve",
    "i8mm",
)


@final
@dataclass(frozen=True)
class Machine:
    """The machine as a report prints it.

    Attributes:
        cpu: model name.
        architecture: for instance `x86_64`.
        cores: logical processors this process may use.
        isa: vector instruction sets, in a fixed order.
        caches: cache name -> bytes of one instance.
        memory_bytes: installed memory.
        os: system and release.
        python, torch, numpy, sparsewright: versions.
        kernels: first 12 hex digits of the native library's sha256, or `none`.
        threads: torch's intra-op threads now.
    """

    cpu: str
    architecture: str
    cores: int
    isa: tuple[str, ...]
    caches: tuple[tuple[str, int], ...]
    memory_bytes: int
    os: str
    python: str
    torch: str
    numpy: str
    sparsewright: str
    kernels: str
    threads: int

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what decides speed: processor, instruction sets, cores and caches."""
        deciding = [self.cpu, self.architecture, self.cores, self.isa, self.caches]
        return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()

    @property
    def versions(self) -> str:
        """The software that decides speed, as one text that is compared as a whole."""
        return f"torch {self.torch}, sparsewright {self.sparsewright}, kernels {self.kernels}"

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, the fingerprint included."""
        data = asdict(self)
        return {**data, "isa": list(self.isa), "caches": dict(self.caches), "fingerprint": self.fingerprint}


def this_machine() -> Machine:
    """Describe the machine this process runs on."""
    # Only asked here: it takes as long to import as a floor of ours.
    import psutil

    return Machine(
        cpu=_cpu_name(),
        architecture=platform.machine(),
        cores=_usable_cores(),
        isa=_isa(),
        caches=_caches(),
        memory_bytes=int(psutil.virtual_memory().total),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        numpy=str(numpy.__version__),
        sparsewright=_package_version(),
        kernels=_kernel_version(),
        threads=torch.get_num_threads(),
    )


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """First processor's fields of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_name() -> str:
    info = _cpuinfo()
    name = info.get("model name") or info.get("CPU part") or platform.processor() or platform.machine()
    if "cpu family" in info:
        # Virtual machines shorten names ("AMD EPYC"); family and model tell the generations apart.
        name += f" (family {info['cpu family']} model {info.get('model', '?')})"
    return name


@functools.cache
def _isa() -> tuple[str, ...]:
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    found = tuple(flag for flag in _ISA_FLAGS if flag in flags)
    return found or (str(torch.backends.cpu.get_cpu_capability()).lower(),)


@functools.cache
def _caches() -> tuple[tuple[str, int], ...]:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((folder / field).read_text().strip() for field in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[:-1].isdigit() and size[-1] in units:
            found.append((f"L{level}", int(size[:-1]) * units[size[-1]]))
    return tuple(found)


def _package_version() -> str:
    try:
        return version("sparsewright")
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def _kernel_version() -> str:
    try:
        spec = find_spec("sparsewright._native._core")
    except ModuleNotFoundError:
        return "none"
    if spec is None or spec.origin is None:
        return "none"
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:12]
