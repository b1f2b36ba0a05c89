"""The error of a weight that no kernel takes: why each of them does not, and what a new one would look like."""

from collections.abc import Mapping

from ...core import KernelError
from ...layouts import PackedWeight


def no_kernel(reasons: Mapping[str, list[str]], packed: PackedWeight | None = None) -> KernelError:
    """The error that lists each candidate's reasons and, where the weight is known, shows how to write a kernel."""
    each = "; ".join(f"{name}: {', '.join(against)}" for name, against in reasons.items() if against)
    text = f"No kernel runs sparse linear here. {each}. Pack the weight for it, or leave the layer dense."
    if packed is None:
        return KernelError(text)
    return KernelError(
        f"{text} To run it dense, counted in the report: with sparsewright.on_missing('dense'). "
        f"To add a kernel, fill this in:\n\n{operator_stub(packed)}"
    )


def operator_stub(packed: PackedWeight) -> str:
    """Python text of an operator for this weight's layout: right as it is, and to be filled with something faster."""
    layout = packed.layout
    name = "".join(part.capitalize() for part in layout.replace("-", "_").split("_")) + "Linear"
    tensors = "\n".join(
        f"        # packed.tensors[{key!r}]: {tuple(tensor.shape)} {tensor.dtype}"
        for key, tensor in packed.tensors.items()
    )
    return f'''\
from sparsewright.nn import AbstractLinear, register_operator


@register_operator("{layout}_linear")
class {name}(AbstractLinear):
    layout = "{layout}"

    def forward(self, x, packed, bias):
        """(..., {packed.shape[1]}) -> (..., {packed.shape[0]})"""
{tensors}
        y = ...  # fill in: x @ packed.unpack().to(x.dtype).T is right, and as slow as dense
        return y if bias is None else y + bias

    def backward(self, grad, x, packed):
        """Gradient of x, and by name of what can be trained. Without this method torch differentiates forward."""
        grad_x = ...  # fill in: grad @ packed.unpack().to(grad.dtype)
        return grad_x, {{}}
'''
