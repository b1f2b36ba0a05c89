"""torch's dynamic int8 linear: the dense rival.

torch has announced the move of this module to another package; the import stays inside the function so that its
warning reaches nobody who does not ask for int8.
"""

import copy
import warnings

import torch
from torch import nn

from ..core import ModelError


def dynamic_int8(module: nn.Module) -> nn.Module:
    """A quantised copy: every `nn.Linear` (the module itself included) gets int8 weights and dynamic activations.

    Args:
        module: float32 on the CPU; it is not changed.

    Raises:
        ModelError: this torch build carries no quantised engine.
    """
    from torch.ao.quantization import quantize_dynamic

    holder = nn.Sequential(copy.deepcopy(module)) if isinstance(module, nn.Linear) else module
    if not [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]:
        raise ModelError("This build of torch has no int8 engine. Leave it out of the rivals.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = quantize_dynamic(holder, {nn.Linear}, dtype=torch.qint8)
    if isinstance(module, nn.Linear):
        return quantised[0]  # type: ignore[no-any-return]
    return quantised  # type: ignore[no-any-return]
