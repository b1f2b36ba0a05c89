"""Compiles every Triton kernel for compute capability 8.0 and 9.0, which needs no device: run by `test_triton.py`.

Prints one line per kernel: its name, the row group, the capability, and whether it multiplies on tensor cores.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsewright.kernels.sparse_linear import triton as forward
from sparsewright.kernels.sparse_linear import triton_backward as backward

POINTERS = {"index": "*u8"} | dict.fromkeys(("pointers", "order", "row_group", "starts", "column"), "*i32")


# Triton compiles sizes of 1 as constants.
ONES = ("tokens", "in_", "out", "groups", "blocks", "splits", "size", "kept_all")


def compiled(kernel, floats, capability, **constants):
    names = [parameter.name for parameter in kernel.params]
    pointers = {**dict.fromkeys(("x", "values", "bias", "y", "grad", "x_grad", "w_grad", "parts"), floats), **POINTERS}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})


def main():
    ones = dict.fromkeys(ONES, 1)
    last = {"HAS_BIAS": True, "ACTIVATION": 2}
    for capability in (80, 90):
        for group, floats in ((1, "*fp32"), (4, "*fp16"), (16, "*bf16")):
            tile = {"GROUP": group, "LANES": forward.LANES}
            kept = max(1, 16 // group)
            calls = {
                forward._few_tokens: {"GROUP": group, "SHARING": kept, "KEPT": 64, **last},
                forward._lanes: {**tile, "KEPT": max(4, kept), **last},
                forward._join_splits: {"LANES": 256, **last},
                backward._input_grad: {**tile, "KEPT": kept},
                backward._weight_grad: {**tile, "KEPT": kept},
            }
            if floats != "*fp32":
                calls[forward._tensor_core] = {
                    "GROUP": group,
                    "ROWS": 16,
                    "TOKENS": 64,
                    "KEPT": 32,
                    "WIDE": False,
                    **last,
                }
            for kernel, constants in calls.items():
                names = {parameter.name for parameter in kernel.params}
                smallest = {name: one for name, one in ones.items() if name in names}
                assert compiled(kernel, floats, capability, **constants, **smallest).asm["cubin"]
                code = compiled(kernel, floats, capability, **constants)
                assert code.asm["cubin"]
                cores = "tensor cores" if any(word in code.asm["ptx"] for word in ("mma.sync", "wgmma")) else "fma"
                print(kernel.__name__, group, capability, cores)


if __name__ == "__main__":
    main()
