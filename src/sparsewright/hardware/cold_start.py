"""Cold start: a fresh process loads a model and answers once; how long it took, and the memory it ever needed.

Run as `python -m sparsewright.hardware.cold_start LOADER ARGUMENT BATCH THREADS`; prints one line of JSON.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..core import ModelError


@final
@dataclass(frozen=True)
class ColdStart:
    """A fresh process, from nothing to the first answer.

    Attributes:
        total_s: wall seconds from starting the process to the first answer, imports included.
        load_s: wall seconds of loading alone, after the imports.
        first_s: wall seconds of the first call.
        peak_rss_bytes: largest resident memory of the process.
    """

    total_s: float
    load_s: float
    first_s: float
    peak_rss_bytes: int


def cold_start(
    loader: str, argument: str, batch: Mapping[str, Any], *, threads: int = 1, repeats: int = 1
) -> ColdStart:
    """Start fresh processes and take the one that was fastest in total.

    Args:
        loader: `module:function`; called with `argument`, gives a module or something with `.model`.
        argument: for instance a path or `hf:NAME`.
        batch: keyword arguments of one call, tensors.
        threads: intra-op threads.
        repeats: how many processes; files are in the page cache from the second on.

    Raises:
        ModelError: the process failed; the message carries its last line.
    """
    from safetensors.torch import save_file

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in batch.items()}, path)
        command = [sys.executable, "-m", "sparsewright.hardware.cold_start", loader, argument, str(path), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        for _ in range(repeats):
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ModelError(f"A fresh process could not load {argument!r} through {loader}: {last[:300]}")
            told = json.loads(done.stdout.strip().splitlines()[-1])
            # The process tells when it had its answer, so that its shutting down is not counted.
            total = told["answered_at"] - started if told["same_clock"] else time.perf_counter() - started
            runs.append(ColdStart(total, told["load_s"], told["first_s"], told["peak_rss_bytes"]))
    return min(runs, key=lambda run: run.total_s)


def _main(arguments: list[str]) -> None:
    loader, argument, path, threads = arguments
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(int(threads))
    module, _, function = loader.partition(":")
    load = getattr(importlib.import_module(module), function)
    batch = load_file(path)
    started = time.perf_counter()
    loaded = load(argument)
    model = loaded if isinstance(loaded, torch.nn.Module) else loaded.model
    model.eval()
    load_s = time.perf_counter() - started
    started = time.perf_counter()
    with torch.inference_mode():
        model(**batch)
    answered = time.perf_counter()
    told = {
        "load_s": load_s,
        "first_s": answered - started,
        "answered_at": answered,
        # On Linux and macOS perf_counter counts from the machine's start, in every process alike.
        "same_clock": sys.platform in ("linux", "darwin"),
        "peak_rss_bytes": _peak_rss_bytes(),
    }
    print(json.dumps(told))


def _peak_rss_bytes() -> int:
    if sys.platform == "linux":
        # Not getrusage: its peak is handed on from the process that forked this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    _main(sys.argv[1:])
