"""Models larger than memory: peak anonymous memory of `sparsify_file` against its bound, and seconds per block.

Writes `results/streaming.csv`. A Llama-shaped model of 64 blocks with random weights lies on disk and takes several
times the memory that the run may use. The peak is that of `RssAnon` in /proc, sampled every millisecond in the process
itself, above its value after all imports; the bound is 1.5 times the largest block in float32, three times the largest
gram matrix in float64, and the hidden states of all batches. MKL is told to keep no buffers between its calls
(`MKL_DISABLE_FAST_MM=1`): they are about 15 MB, whatever the model. `--methods alps` says how far alps goes beyond.

    python benchmarks/bench_streaming.py [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from benchmarks.record import RESULTS, where, write_rows
from safetensors.torch import save_file

METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERN = "2:4"
BATCHES, TOKENS = 16, 256
VOCABULARY = 1000


def write_model(folder: Path, hidden: int, inner: int, blocks: int) -> int:
    """Random weights, one shard per block, never two of them in memory; returns the bytes on disk."""
    generator = torch.Generator().manual_seed(0)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden)}
    shapes |= {"self_attn.v_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden)}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    table: dict[str, str] = {}
    size = 0
    for number in range(blocks + 1):
        name = f"model-{number:05}.safetensors"
        if number == blocks:
            outer = ("model.embed_tokens", "lm_head")
            tensors = {f"{each}.weight": torch.randn(VOCABULARY, hidden, generator=generator) for each in outer}
            tensors["model.norm.weight"] = torch.ones(hidden)
        else:
            block = f"model.layers.{number}"
            tensors = {
                f"{block}.{layer}.weight": torch.randn(shape, generator=generator) / shape[1] ** 0.5
                for layer, shape in shapes.items()
            }
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{block}.{norm}.weight"] = torch.ones(hidden)
        save_file(tensors, folder / name)
        table |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return size


def bound_bytes(hidden: int, inner: int) -> int:
    """What the run may take: see the top of this page."""
    block = 4 * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden)
    gram = 8 * max(hidden, inner) ** 2
    return int(1.5 * block) + 3 * gram + 4 * BATCHES * TOKENS * hidden


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def run_here(source: str, goal: str, method: str) -> None:
    """Stream in this process and print what it took as JSON."""
    import sparsewright as sw
    from sparsewright.models import ensure_torchvision_imports

    ensure_torchvision_imports()
    from transformers.models.llama import modeling_llama  # noqa: F401  counts as an import

    run = sw.sparsify_file
    generator = torch.Generator().manual_seed(1)
    data = [{"input_ids": torch.randint(0, VOCABULARY, (1, TOKENS), generator=generator)} for _ in range(BATCHES)]
    before = peak = anonymous_bytes()
    running = True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, anonymous_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        run(source, goal, PATTERN, method=method, data=data)
    finally:
        seconds = time.perf_counter() - started
        running = False
        watcher.join()
    print(json.dumps({"peak": peak - before, "seconds": seconds}))


def main() -> None:
    """Write the model, stream it once per method, write the table."""
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true", help="a small model of eight blocks")
    options.add_argument("--here", nargs=3, metavar=("SOURCE", "GOAL", "METHOD"), help=argparse.SUPPRESS)
    options.add_argument("--methods", help="with a comma between", default=",".join(METHODS))
    chosen = options.parse_args()
    if chosen.here:
        run_here(*chosen.here)
        return
    hidden, inner, blocks = 512, 1408, 8 if chosen.quick else 64
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        source.mkdir()
        size, bound = write_model(source, hidden, inner, blocks), bound_bytes(hidden, inner)
        for method in chosen.methods.split(","):
            command = [sys.executable, __file__, "--here", str(source), str(Path(folder) / method), method]
            environment = {**os.environ, "MKL_DISABLE_FAST_MM": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise SystemExit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            row = {
                "method": method,
                "pattern": PATTERN,
                "blocks": blocks,
                "hidden": hidden,
                "inner": inner,
                "model_mb": round(size / 1e6),
                "bound_mb": round(bound / 1e6),
                "peak_mb": round(found["peak"] / 1e6),
                "peak_over_bound": round(found["peak"] / bound, 3),
                "seconds_per_block": round(found["seconds"] / blocks, 2),
            }
            print(row, flush=True)
            rows.append({**row, **where()})
    if not chosen.quick:
        write_rows(RESULTS / "streaming.csv", rows)


if __name__ == "__main__":
    main()
