"""Floor 0: the native library. It takes addresses, so it is built without torch and knows no tensor.

torch is imported first: its OpenMP library then serves ours as well, and there is one pool of threads.
`SPARSEWRIGHT_ISA` (a name of `instruction_sets()`, best first; read once) forces an instruction set below the best one
that runs here.
"""

import torch  # noqa: F401

from ._core import (
    Int8Operand,
    NmgOperand,
    Operand,
    QuickCall,
    fma_peak,
    forget_plans,
    grouped_nm,
    instruction_set,
    instruction_sets,
    transposable,
)

__all__ = [
    "Int8Operand",
    "NmgOperand",
    "Operand",
    "QuickCall",
    "fma_peak",
    "forget_plans",
    "grouped_nm",
    "instruction_set",
    "instruction_sets",
    "transposable",
]
