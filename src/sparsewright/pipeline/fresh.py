"""Reload a bundle in a process of its own: `python -m sparsewright.pipeline.fresh request.json`.

What a user's process will see: seconds to import, load and answer first, peak memory, and the answer itself, which the
run compares bit by bit with the answer of the model it packed.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..core import BundleError, read_json, write_json


def reload_in_fresh_process(
    bundle: Path, source: str, inputs: Path, folder: Path, threads: int, timeout_s: float = 600.0
) -> dict[str, Any]:
    """Load `bundle` in a new process, run the model once on `inputs`.

    Args:
        bundle: the file.
        source: model source, for models whose structure the bundle cannot build by itself.
        inputs: safetensors file with the keyword arguments of the model.
        folder: the answer is written there as `fresh.safetensors`.
        threads: of the new process.
        timeout_s: the process is ended after this many seconds.

    Returns:
        `import_s` (start of the process and imports; None where it cannot be told), `load_s`, `cold_start_s` (load and
        first answer), `peak_rss_bytes`, `outputs` (path).

    Raises:
        BundleError: the process failed; the message carries its last line.
    """
    request, answer = folder / "fresh_request.json", folder / "fresh_answer.json"
    facts = {"bundle": str(bundle), "source": source, "inputs": str(inputs), "threads": threads}
    facts |= {"answer": str(answer), "outputs": str(folder / "fresh.safetensors")}
    command = [sys.executable, "-m", "sparsewright.pipeline.fresh", str(request)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # On Linux and macOS this clock counts from the machine's start, in every process alike.
    write_json(request, {**facts, "started_at": time.perf_counter() if sys.platform in ("linux", "darwin") else None})
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BundleError(f"The bundle {bundle} does not reload in a fresh process: {last}")
    return dict(read_json(answer))


def _answer(request: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from ..bundle import load
    from ..models import load_model
    from ..models.tasks.base import first_tensor

    torch.set_num_threads(int(request["threads"]))
    imported = time.perf_counter()
    try:
        model = load(request["bundle"])
    except BundleError:
        # The bundle cannot build this kind of model; its structure comes from the recipe's source.
        model = load(request["bundle"], model=load_model(request["source"]).model)
    model.eval()
    loaded = time.perf_counter()
    inputs = load_file(request["inputs"])
    with torch.inference_mode():
        output = first_tensor(model(**inputs))
    answered = time.perf_counter()
    save_file({"output": output.clone().contiguous()}, request["outputs"])
    write_json(
        request["answer"],
        {
            "import_s": None if request["started_at"] is None else imported - request["started_at"],
            "load_s": loaded - imported,
            "cold_start_s": answered - imported,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "outputs": request["outputs"],
        },
    )


if __name__ == "__main__":
    _answer(json.loads(Path(sys.argv[1]).read_text()))
