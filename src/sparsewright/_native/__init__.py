"""Floor 0: the native library. It takes addresses, so it is built without torch and knows no tensor.

torch is imported first: its OpenMP library then serves ours as well, and there is one pool of threads.
`SPARSEWRIGHT_ISA` (`avx512_vnni`, `avx512`, `avx_vnni`, `avx2`, `scalar`; read once) forces an instruction set below
the best one that runs here.
"""

import torch  # noqa: F401

from ._core import Int8Operand, Operand, fma_peak, instruction_set, instruction_sets

__all__ = ["Int8Operand", "Operand", "fma_peak", "instruction_set", "instruction_sets"]
