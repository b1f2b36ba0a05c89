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
    _refuse_transforms("Grad")
    refuse_forward_mode(x, bias)
    if packed.device.type == "meta" and x.device.type != "meta":
        raise KernelError(
            f"The packed weight is on the meta device, which has no values, and x is on {x.device}. Load the weight "
            "(load_state_dict with assign=True, or sparsewright.load) first."
        )
    if x.device.type == "meta" and packed.device.type != "meta" and packed.layout == "int8_weights":
        # The other layouts tell the shape all the same.
        raise KernelError(
            f"x is on the meta device, which has no values, and the packed weight is on {packed.device}. Move the "
            'model too (`.to("meta")`), or pass values.'
        )


def refuse_forward_mode(*tensors: Tensor | None) -> None:
    """Raise KernelError where one of them carries a forward-mode derivative, or torch.func asks for one.

    Not for use under torch.compile.
    """
    _refuse_transforms("Jvp")
    if in_forward_ad() and any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise KernelError(
            "Packed layers have no forward-mode derivative. Use reverse mode (torch.autograd.grad), or leave the layer "
            "unpacked."
        )


def _refuse_transforms(refused: str) -> None:
    if any(interpreter.key().name == refused for interpreter in torch._C._functorch.get_interpreter_stack() or ()):
        raise KernelError(
            f"Packed layers do not differentiate under {_UNKNOWN[refused]}. Use torch.autograd.grad (with "
            "create_graph=True for higher derivatives), or leave the layer unpacked."
        )
