"""Which weights of a model are masked, and how they stay so while it is trained.

After `sparsify_` a layer holds zeros in `weight` and a buffer `weight_mask` beside it. The mask, not the zeros, is the
truth: a kept weight that happens to be zero may move, a masked one never does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import ModelError


@dataclass(frozen=True)
class MaskedWeight:
    """One parameter and what must stay zero in it.

    Attributes:
        name: of the parameter in the model.
        parameter: the dense tensor with zeros in it.
        dropped: bool, shape of the parameter, True = must be zero.
    """

    name: str
    parameter: nn.Parameter
    dropped: Tensor

    def clear(self) -> None:
        """Put the zeros back, and out of the gradient, so that optimiser moments do not grow behind the mask."""
        with torch.no_grad():
            self.parameter.masked_fill_(self.dropped, 0.0)
            if self.parameter.grad is not None:
                self.parameter.grad.masked_fill_(self.dropped, 0.0)


def masked_weights(model: nn.Module) -> list[MaskedWeight]:
    """Every masked weight of the model, each parameter once, in module order.

    Raises:
        ModelError: a mask does not match its weight, or the weight is packed already.
    """
    found: dict[int, MaskedWeight] = {}
    for prefix, module in model.named_modules():
        mask = module._buffers.get("weight_mask")
        if mask is None:
            continue
        name = f"{prefix}.weight" if prefix else "weight"
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or type(weight.data) is not Tensor:
            raise ModelError(
                f"{name} has a mask but no plain dense parameter, so it cannot be trained. "
                "Recover the model before pack_, not after."
            )
        if mask.numel() != weight.numel():
            raise ModelError(
                f"The mask of {name} has shape {tuple(mask.shape)}, its weight {tuple(weight.shape)}. "
                "Sparsify it again."
            )
        if mask.shape == weight.shape:
            kept = mask.bool()
        elif mask.ndim == 2 and mask.T.shape == weight.shape:
            kept = mask.bool().T  # transformers' Conv1D stores (in, out)
        else:
            kept = mask.bool().reshape(weight.shape)  # a convolution, masked in its (out, in*kh*kw) view
        found.setdefault(id(weight), MaskedWeight(name, weight, ~kept))
    return list(found.values())
