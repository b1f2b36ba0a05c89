"""What no kernel reads, and what no operator can differentiate: it would get zeros, or foreign errors."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...core import KernelError
from ...layouts import PackedWeight

_UNKNOWN = {"Grad": "torch.func.grad and its like", "Jvp": "torch.func.jvp and its like"}


def in_forward_ad() -> bool:
    """Whether forward-mode differentiation is on somewhere around this call."""
    return forward_ad._current_level >= 0


def refuse_nested(operation: str) -> KernelError:
    """The error for an x that is a nested tensor."""
    return KernelError(
        f"{operation} takes x as a plain tensor, got a nested one. Pass its values (`x.values()` of a jagged one), or "
        "torch.nested.to_padded_tensor(x, 0.0)."
    )


def check_eager(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> None:
    """Raise KernelError where no operator knows how to differentiate the product, or where the weight has no bytes.

    Not for use under torch.compile.
    """
    for interpreter in torch._C._functorch.get_interpreter_stack() or ():
        name = interpreter.key().name
        if name in _UNKNOWN:
            raise KernelError(
                f"Packed layers do not differentiate under {_UNKNOWN[name]}. Use torch.autograd.grad (with "
                "create_graph=True for higher derivatives), or leave the layer unpacked."
            )
    if in_forward_ad() and any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in (x, bias)):
        raise KernelError(
            "Packed layers have no forward-mode derivative. Use reverse mode (torch.autograd.grad), or leave the layer "
            "unpacked."
        )
    if packed.device.type == "meta" and x.device.type != "meta":
        raise KernelError(
            f"The packed weight is on the meta device, which has no values, and x is on {x.device}. Load the weight "
            "(load_state_dict with assign=True, or sparsewright.load) first."
        )
