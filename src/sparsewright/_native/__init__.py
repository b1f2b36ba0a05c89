"""Floor 0: the native library. It takes addresses, so it is built without torch and knows no tensor.

torch is imported first: its OpenMP library then serves ours as well, and there is one pool of threads.
`SPARSEWRIGHT_ISA=scalar` (read once, when the first operand is made) forces a lower instruction set.
"""

import torch  # noqa: F401

from ._core import Operand, instruction_set

__all__ = ["Operand", "instruction_set"]
