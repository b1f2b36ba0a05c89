"""Sparse convolutions against onnxruntime's and torch's dense float32 ones: batch 1, one thread.

Writes `results/conv.csv` beside this file. Every figure is thread CPU time; onnxruntime, torch and ours take turns
within one run, and only ratios within a run are compared. Channels first and channels last are timed for torch and for
ours; onnxruntime, which chooses its own format inside, stands against both.

    python benchmarks/bench_conv.py [--quick]
"""

import argparse
import csv
import datetime
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional

import sparsewright
from sparsewright import kernels
from sparsewright._native import instruction_set
from sparsewright.core import parse_pattern
from sparsewright.hardware import interleave, speedup, this_machine
from sparsewright.layouts import pack
from sparsewright.solvers import solve_mask

# Channels in and out, height and width, kernel.
SHAPES = ((256, 14, 3), (512, 28, 1), (64, 56, 3), (128, 28, 3))
GATES = {(256, 14, 3): 2.2, (512, 28, 1): 3.0}
PATTERNS = ("10%", "4x1@10%", "16x1@10%", "1:4x4", "2:4x4")
QUICK_PATTERNS = ("10%", "16x1@10%")
RESULTS = Path(__file__).parent / "results" / "conv.csv"


def onnx_dense(weight: Tensor, bias: Tensor, size: int) -> Callable[[Tensor], object]:
    """onnxruntime's dense convolution on one thread."""
    out, channels, kernel, _ = weight.shape
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, out, size, size])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w"), onnx.numpy_helper.from_array(bias.numpy(), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def measure(shape: tuple[int, int, int], patterns: tuple[str, ...], rounds: int) -> list[dict[str, object]]:
    """One row per pattern and memory format."""
    channels, size, kernel = shape
    torch.manual_seed(0)
    weight, bias = (
        torch.randn(channels, channels, kernel, kernel) / (channels * kernel**2) ** 0.5,
        torch.zeros(channels),
    )
    first = torch.randn(1, channels, size, size)
    inputs = {"channels first": first, "channels last": first.to(memory_format=torch.channels_last)}
    rival = onnx_dense(weight, bias, size)
    calls: dict[str, Callable[[], object]] = {"onnxruntime": lambda: rival(first)}
    for order, x in inputs.items():
        dense = weight.to(memory_format=torch.channels_last) if order == "channels last" else weight
        calls[f"torch {order}"] = lambda x=x, dense=dense: functional.conv2d(x, dense, bias, padding=kernel // 2)
    for text in patterns:
        rule = parse_pattern(text)
        matrix = weight.flatten(1)
        packed = pack(matrix, solve_mask(matrix.abs(), rule), "vector", rule)
        for order, x in inputs.items():
            calls[f"{text} {order}"] = lambda x=x, packed=packed: kernels.conv2d(
                x, packed, bias, kernel_size=kernel, padding=kernel // 2
            )
    taken = interleave(calls, rounds=(rounds, rounds))
    rows = []
    for text in patterns:
        for order in inputs:
            ours, theirs = taken[f"{text} {order}"], taken[f"torch {order}"]
            low, high = ours.quartiles()
            multiply_adds = parse_pattern(text).density * weight.numel() * size**2
            rows.append(
                {
                    "channels": channels,
                    "size": size,
                    "kernel": kernel,
                    "pattern": text,
                    "format": order,
                    "onnxruntime_us": round(1e6 * taken["onnxruntime"].median, 1),
                    "torch_us": round(1e6 * theirs.median, 1),
                    "sparse_us": round(1e6 * ours.median, 1),
                    "sparse_us_q1": round(1e6 * low, 1),
                    "sparse_us_q3": round(1e6 * high, 1),
                    "speedup_over_onnxruntime": round(speedup(ours, taken["onnxruntime"]).value, 2),
                    "speedup_over_torch": round(speedup(ours, theirs).value, 2),
                    "useful_gflops": round(2e-9 * multiply_adds / ours.median, 1),
                    "goal_over_onnxruntime": GATES.get(shape, "") if text.endswith("10%") else "",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes and two patterns")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    where = {
        "machine": this_machine().cpu,
        "instruction_set": instruction_set(),
        "threads": 1,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "sparsewright": sparsewright.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    rows: list[dict[str, object]] = []
    for shape in SHAPES[:2] if options.quick else SHAPES:
        for row in measure(shape, QUICK_PATTERNS if options.quick else PATTERNS, 15 if options.quick else 40):
            rows.append({**row, **where})
            print(
                f"{shape[2]}x{shape[2]}, {shape[0]} channels, {shape[1]}x{shape[1]}, {row['pattern']} {row['format']}: "
                f"{row['sparse_us']} us, {row['speedup_over_onnxruntime']}x onnxruntime dense, "
                f"{row['speedup_over_torch']}x torch dense",
                flush=True,
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
