"""Three made-up results: a full run, an almost empty one, and one that a rival beats."""

import copy
import math
from typing import Any

PATTERNS = {"4x1@75%": 0.75, "2:4": 0.5, "4:8": 0.5, "50%": 0.5, "2:4x4": 0.5, "4x1@50%": 0.5, "1:4x4": 0.25}
ERROR = {"4x1@75%": 0.08, "2:4": 0.16, "4:8": 0.13, "50%": 0.11, "2:4x4": 0.24, "4x1@50%": 0.2, "1:4x4": 0.52}
COST = {"4x1@75%": 0.83, "2:4": 0.66, "4:8": 0.67, "50%": 0.69, "2:4x4": 0.5, "4x1@50%": 0.47, "1:4x4": 0.29}
PARTS = (
    ("attention.self.query", (384, 384)),
    ("attention.self.key", (384, 384)),
    ("attention.self.value", (384, 384)),
    ("attention.output.dense", (384, 384)),
    ("intermediate.dense", (1536, 384)),
    ("output.dense", (384, 1536)),
)


def layers_and_sensitivity() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    layers, sensitivity = [], []
    for block in range(6):
        for place, (part, (out, in_)) in enumerate(PARTS):
            name = f"encoder.layer.{block}.{part}"
            dense_s = out * in_ * 1.1e-8
            hurt = 0.25 + 0.5 * abs(math.sin(block * 2.3 + place * 1.1)) + (0.9 if block == 5 and place == 5 else 0)
            for pattern, error in ERROR.items():
                cost = dense_s * COST[pattern]
                sensitivity.append({"layer": name, "pattern": pattern, "error": error * hurt, "cost_s": cost})
            pattern = "1:4x4" if hurt < 0.3 else "2:4x4" if hurt < 0.45 else "4x1@50%" if hurt < 0.6 else "2:4"
            if hurt > 1.0 or (block == 0 and place == 1):
                pattern = "dense"
            density = PATTERNS.get(pattern, 1.0)
            reason = "costs 0.6 points for 3 % of the time" if hurt > 1 else "no pattern is faster than dense here"
            layers.append(
                {
                    "name": name,
                    "shape": [out, in_],
                    "pattern": pattern,
                    "layout": "masked" if pattern == "dense" else "vector",
                    "value_dtype": "fp16" if pattern == "dense" else "fp32",
                    "sparsifier": None if pattern == "dense" else "sparsegpt",
                    "density": density,
                    "dense_s": dense_s,
                    "predicted_s": dense_s * COST.get(pattern, 1.0),
                    "sensitivity": ERROR.get(pattern, 0.0) * hurt,
                    "bytes": out * in_ * 2 * density * 1.1,
                    "reason": reason if pattern == "dense" else "cheapest within the budget",
                }
            )
    return layers, sensitivity


def front() -> list[dict[str, Any]]:
    points = []
    for step in range(12):
        speed = 1.05 + 0.09 * step
        drop = 0.0012 * math.exp(0.36 * step)
        points.append(
            {
                "label": f"search {step + 1}",
                "predicted_s": 0.0232 / speed,
                "measured_s": 0.0232 / speed * 1.03 if step == 6 else None,
                "predicted_speedup": speed,
                "predicted_drop": drop * 1.1,
                "quality": 0.692 - drop if step in (4, 6, 7) else None,
                "drop": drop if step in (4, 6, 7) else None,
                "size_bytes": 21e6 - 4e5 * step,
                "kind": "search",
                "chosen": step == 6,
                "patterns": {"2:4": 12 - step, "4x1@50%": 12, "2:4x4": 5 + step, "dense": 7},
            }
        )
    for pattern, speed, drop in (("2:4", 1.33, 0.026), ("4x1@50%", 1.72, 0.054), ("4x1@75%", 1.12, 0.022)):
        points.append(
            {
                "label": f"uniform {pattern}",
                "predicted_s": 0.0232 / speed,
                "measured_s": None,
                "predicted_speedup": speed,
                "quality": 0.692 - drop,
                "drop": drop,
                "size_bytes": 19e6,
                "kind": "uniform",
                "chosen": False,
                "patterns": {pattern: 36},
            }
        )
    dense = {"label": "dense", "predicted_s": 0.0232, "measured_s": 0.0234, "predicted_speedup": 1.0, "quality": 0.692}
    points.append(dense | {"drop": 0.0, "size_bytes": 45.4e6, "kind": "baseline", "chosen": False, "patterns": {}})
    return points


ROWS = (
    # name, quality, drop, stderr, ms at 1, ms at 32, file MB, load s, cold s, peak MB, inside
    ("torch fp32", 0.6921, 0.0, 0.0, 23.4, 602.0, 90.9, 0.41, 2.31, 540, True),
    ("torch dynamic int8", 0.6914, 0.0007, 0.0042, 15.9, 430.0, 56.9, 0.52, 2.6, 610, True),
    ("onnxruntime fp32", 0.6921, 0.0, 0.0, 18.1, 540.0, 91.2, 0.62, 1.4, 480, True),
    ("onnxruntime dynamic int8", 0.6702, 0.0219, 0.0051, 11.2, 371.0, 23.1, 0.33, 1.1, 420, False),
    ("fp16 file", 0.6921, 0.0000, 0.0001, 23.5, 604.0, 45.5, 0.44, 2.35, 545, True),
    ("ours", 0.6789, 0.0132, 0.0048, 13.9, 345.0, 35.1, 0.29, 2.1, 470, True),
)


def full() -> dict[str, Any]:
    layers, sensitivity = layers_and_sensitivity()
    table, latency = [], []
    for name, quality, drop, stderr, one, many, megabytes, load, cold, peak, inside in ROWS:
        speed = {"1": 23.4 / one, "32": 602.0 / many}
        table.append(
            {
                "name": name,
                "quality": quality,
                "drop": drop,
                "stderr": stderr,
                "latency_s": {"1": one / 1e3, "32": many / 1e3},
                "speedup": speed,
                "throughput_per_s": 32 / (many / 1e3),
                "file_bytes": megabytes * 1e6,
                "load_s": load,
                "cold_start_s": cold,
                "peak_rss_bytes": peak * 1e6,
                "inside_budget": inside,
            }
        )
        for batch, time in ((1, one / 1e3), (32, many / 1e3)):
            latency.append(
                {
                    "name": name,
                    "batch": batch,
                    "length": 64,
                    "threads": 1,
                    "p50_s": time,
                    "p95_s": time * 1.06,
                    "p99_s": time * 1.19,
                    "cpu_s": time * 0.99,
                    "speedup": speed[str(batch)],
                    "speedup_interval": [speed[str(batch)] * 0.97, speed[str(batch)] * 1.025],
                }
            )
    slices = [
        {
            "name": name,
            "n": n,
            "dense": 0.69,
            "ours": 0.69 - drop,
            "drop": drop,
            "interval": [drop - 0.013, drop + 0.014],
        }
        for name, n, drop in (
            ("asyncio", 212, 0.021),
            ("email", 304, 0.009),
            ("concurrent", 96, -0.004),
            ("xml", 150, 0.016),
        )
    ]
    return {
        "version": 1,
        "tool": {"name": "sparsewright", "version": "0.1.0"},
        "created": "2026-11-22T15:40:12+00:00",
        "environment": {
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "isa": ["avx2", "fma", "f16c"],
            "memory_bytes": 24_000_000_000,
            "os": "Linux 6.8",
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "threads": 1,
            "fingerprint": "a91f03bb2c",
        },
        "recipe": {"model": "hf:all-MiniLM-L6-v2", "task": "docstrings", "budget": {"max_quality_drop": 0.02}},
        "recipe_sha256": "5f0c" * 16,
        "model": {
            "source": "hf:all-MiniLM-L6-v2",
            "family": "transformers encoder",
            "parameters": 22_713_216,
            "dense_bytes": 90_852_864,
        },
        "data": {
            "task": "documentation retrieval",
            "metric": "MRR",
            "unit": "points",
            "validation": {"n": 1120},
            "test": {"n": 1690, "sha256": "c0ffee" * 10},
        },
        "budget": {"speedup": None, "max_quality_drop": 0.02, "size_bytes": None, "worst_slice_drop": 0.05},
        "quality": {
            "validation": {
                "dense": 0.692,
                "one_shot": 0.6508,
                "ours": 0.6801,
                "drop": 0.0119,
                "stderr": 0.0052,
                "interval": [0.0017, 0.0221],
                "n": 1120,
            },
            "test": {
                "dense": 0.6921,
                "one_shot": 0.6522,
                "ours": 0.6789,
                "drop": 0.0132,
                "stderr": 0.0048,
                "interval": [0.0041, 0.0223],
                "n": 1690,
                "slices": slices,
                "extra": {
                    "accuracy@1": {"dense": 0.581, "ours": 0.566},
                    "cosine fidelity": {"dense": 1.0, "ours": 0.941},
                },
            },
        },
        "layers": layers,
        "sensitivity": sensitivity,
        "front": front(),
        "latency": latency,
        "table": table,
        "prediction": {
            "rows": [
                {"batch": 1, "predicted_s": 0.0136, "measured_s": 0.0139, "miss": -0.0216},
                {"batch": 32, "predicted_s": 0.362, "measured_s": 0.345, "miss": 0.0493},
            ],
            "worst_miss": 0.0493,
            "within_10_percent": True,
        },
        "bytes": {"dense_fp32": 90.9e6, "dense_fp16": 45.5e6, "ours": 35.1e6, "theoretical": 34.5e6},
        "energy": {
            "source": "RAPL package counter",
            "joules_per_inference": {"torch fp32": 0.212, "torch dynamic int8": 0.151, "ours": 0.127},
        },
        "prices": {
            "cost_per_machine_hour": 0.38,
            "utilisation": 0.45,
            "machines": 40,
            "engineering_cost": 12000,
            "currency": "EUR",
        },
        "devices": [
            {"target": "this", "plan": "chosen", "predicted_s": 0.0136, "speedup": 1.69},
            {"target": "this", "plan": "uniform 4x1@50%", "predicted_s": 0.0135, "speedup": 1.72},
            {"target": "board.json", "plan": "chosen", "predicted_s": 0.0912, "speedup": 1.41},
        ],
        "timings": [
            {"stage": "profile", "seconds": 148.0},
            {"stage": "calibrate", "seconds": 31.2},
            {"stage": "sensitivity", "seconds": 96.5},
            {"stage": "search", "seconds": 41.0},
            {"stage": "sparsify", "seconds": 38.8},
            {"stage": "recover", "seconds": 244.0},
            {"stage": "measure", "seconds": 77.3},
        ],
    }


def minimal() -> dict[str, Any]:
    return {"version": 1, "model": {"source": "python:shop.models:ranker"}, "created": "2026-11-22T15:40:12+00:00"}


def beaten() -> dict[str, Any]:
    """A rival inside the budget is faster, the budget is missed, the prediction too; no prices, no energy."""
    results = copy.deepcopy(full())
    for key in ("energy", "prices", "devices"):
        results[key] = None
    for row in results["table"]:
        if row["name"] == "torch dynamic int8":
            row["latency_s"] = {"1": 0.0120, "32": 0.320}
            row["speedup"] = {"1": 23.4 / 12.0, "32": 602.0 / 320.0}
        if row["name"] == "ours":
            row |= {"drop": 0.0267, "quality": 0.6654, "inside_budget": False}
    results["quality"]["test"] |= {"ours": 0.6654, "drop": 0.0267, "interval": [0.0162, 0.0371]}
    results["prediction"] = {
        "rows": [{"batch": 1, "predicted_s": 0.0119, "measured_s": 0.0139, "miss": -0.1439}],
        "worst_miss": -0.1439,
        "within_10_percent": False,
    }
    return results
