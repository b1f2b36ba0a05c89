"""onnxruntime's dense float32 linear: a stronger dense baseline than torch at some shapes.

    python benchmarks/onnx_dense.py        # both dense ones at a few shapes

`onnx_linear(weight, bias)` gives a callable that a benchmark times beside the others. The weight is an initializer, so
that onnxruntime packs it once at load; input and output are bound in place, so that no copy and no dictionary counts.
"""

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsewright.hardware.onnx_rival import open_session


def onnx_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Dense linear in onnxruntime, one thread.

    Args:
        weight: `(out, in)` float32 on the CPU; read once, at load.
        bias: `(out,)` float32, or None.

    Returns:
        Takes x `(tokens, in)` float32, contiguous, on the CPU; gives `(tokens, out)`, which the next call with the same
        x overwrites.
    """
    session = open_session(_model(weight, bias), threads=1)
    out = weight.shape[0]
    bound: dict[tuple[int, int], tuple[object, Tensor, Tensor]] = {}

    def run(x: Tensor) -> Tensor:
        key = (x.data_ptr(), x.shape[0])
        found = bound.get(key)
        if found is None:
            binding, y = session.io_binding(), torch.empty(x.shape[0], out)
            binding.bind_input("x", "cpu", 0, np.float32, tuple(x.shape), x.data_ptr())
            binding.bind_output("y", "cpu", 0, np.float32, tuple(y.shape), y.data_ptr())
            # x is kept, or its address could come to mean another tensor.
            found = bound[key] = (binding, x, y)
        session.run_with_iobinding(found[0])
        return found[2]

    return run


def _model(weight: Tensor, bias: Tensor | None) -> bytes:
    """One Gemm as a serialised ONNX model."""
    from onnx import TensorProto, helper, numpy_helper

    out, in_ = weight.shape
    held = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    node = helper.make_node("Gemm", ["x", *held], ["y"], transB=1)
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", in_])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", out])],
        [numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in held.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def main() -> None:
    """Print both dense linears at a few shapes, interleaved."""
    torch.set_num_threads(1)
    for out, in_ in ((768, 768), (3072, 768)):
        weight, bias = torch.randn(out, in_) / in_**0.5, torch.randn(out)
        ours = onnx_linear(weight, bias)
        for tokens in (1, 128):
            x = torch.randn(tokens, in_)
            torch.testing.assert_close(ours(x), functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
            calls = {"torch": lambda: functional.linear(x, weight, bias), "onnxruntime": lambda: ours(x)}  # noqa: B023
            taken: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(15):
                for name, call in calls.items():
                    start = time.thread_time()
                    call()
                    taken[name].append(time.thread_time() - start)
            medians = {name: statistics.median(values) for name, values in taken.items()}
            texts = "  ".join(f"{name} {1e6 * seconds:.1f} us" for name, seconds in medians.items())
            ratio = medians["torch"] / medians["onnxruntime"]
            print(f"{out}x{in_}, {tokens} tokens: {texts}, torch / onnxruntime {ratio:.2f}")


if __name__ == "__main__":
    main()
