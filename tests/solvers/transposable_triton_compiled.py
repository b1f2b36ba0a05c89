"""Compiles the Triton kernels of the transposable solver for compute capability 9.0, which needs no device.

Prints one line per kernel: its name, the tile's size, the capability.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsewright.solvers import transposable_triton as kernels

POINTERS = {
    "_sweep_tiles": {
        "scores": "*fp32",
        "mask": "*i8",
        "row_prices": "*fp32",
        "column_prices": "*fp32",
        "unsolved": "*i8",
    },
    "_repair_tiles": {
        "scores": "*fp32",
        "mask": "*i8",
        "row_prices": "*fp64",
        "column_prices": "*fp64",
        "numbers": "*i64",
    },
}


def main():
    for capability in (90,):
        for m in (5, 16):
            padded = triton.next_power_of_2(m)
            sizes = {"N": m // 2, "M": m, "P": padded}
            sweep = {**sizes, "TILES": max(1, 1024 // padded**2), "SWEEPS": 10}
            for kernel, constants in ((kernels._sweep_tiles, sweep), (kernels._repair_tiles, sizes)):
                names = [parameter.name for parameter in kernel.params]
                pointers = POINTERS[kernel.__name__]
                signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
                source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
                code = triton.compile(source, target=GPUTarget("cuda", capability, 32))
                assert code.asm["cubin"]
                print(kernel.__name__, m, capability, flush=True)


if __name__ == "__main__":
    main()
