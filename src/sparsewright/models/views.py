"""Views: how a module's weight is seen as `(out, in)`, and its inputs as `(tokens, in)`."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from ..core import ValueType


class AbstractView(ABC):
    """The declared view of one kind of module."""

    kind: str
    """Word for reports and for `LayerRef.kind`."""

    runs_packed: bool
    """Whether a packed weight can stand in the module in this release."""

    value_types: tuple[ValueType, ...] = ("fp32", "fp16", "int8")
    """Kinds of kept values that kernels of such layers multiply."""

    @abstractmethod
    def weight(self, module: nn.Module) -> Tensor:
        """`(out, in)` view of the module's weight, sharing its memory."""

    @abstractmethod
    def as_stored(self, matrix: Tensor, module: nn.Module) -> Tensor:
        """A `(out, in)` tensor (weight or mask) in the shape of the module's own weight."""

    @abstractmethod
    def matrix(self, stored: Tensor) -> Tensor:
        """A tensor in the shape of the module's own weight as `(out, in)`: the way back from `as_stored`."""

    @abstractmethod
    def rows(self, inputs: Tensor, module: nn.Module) -> Tensor:
        """The inputs of one call as `(tokens, in)`, so that the output is `rows @ weight.T` up to the bias."""

    def token_shape(self, inputs: Tensor) -> tuple[int, ...] | None:
        """Leading shape that counts tokens one to one with `rows`, or None where rows are no tokens."""
        return tuple(inputs.shape[:-1])


def stored_weight(module: nn.Module) -> Tensor:
    """The module's `weight` parameter, without gradient."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@final
class LinearView(AbstractView):
    """`nn.Linear`: the weight is `(out, in)` as it stands."""

    kind = "linear"
    runs_packed = True

    def weight(self, module: nn.Module) -> Tensor:
        return stored_weight(module)

    def matrix(self, stored: Tensor) -> Tensor:
        return stored

    def as_stored(self, matrix: Tensor, module: nn.Module) -> Tensor:
        return matrix

    def rows(self, inputs: Tensor, module: nn.Module) -> Tensor:
        return inputs.reshape(-1, inputs.shape[-1])


@final
class TransposedView(AbstractView):
    """`Conv1D` of transformers (GPT-2): a linear layer whose weight is stored `(in, out)`."""

    kind = "transposed"
    runs_packed = True

    def weight(self, module: nn.Module) -> Tensor:
        return self.matrix(stored_weight(module))

    def matrix(self, stored: Tensor) -> Tensor:
        return stored.T

    def as_stored(self, matrix: Tensor, module: nn.Module) -> Tensor:
        return matrix.T.contiguous()

    def rows(self, inputs: Tensor, module: nn.Module) -> Tensor:
        return inputs.reshape(-1, inputs.shape[-1])


@final
class Conv2dView(AbstractView):
    """`nn.Conv2d` with one group, through the view `(out, in * kh * kw)`; inputs are unfolded patches."""

    kind = "conv2d"
    runs_packed = True
    value_types = ("fp32", "fp16")

    def weight(self, module: nn.Module) -> Tensor:
        return self.matrix(stored_weight(module))

    def matrix(self, stored: Tensor) -> Tensor:
        return stored.flatten(1)

    def as_stored(self, matrix: Tensor, module: nn.Module) -> Tensor:
        return matrix.reshape(stored_weight(module).shape)

    def rows(self, inputs: Tensor, module: nn.Module) -> Tensor:
        assert isinstance(module, nn.Conv2d)
        images = inputs if inputs.dim() == 4 else inputs.unsqueeze(0)
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            # Conv2d keeps the amounts for F.pad ready, whatever the mode and also for "same".
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            images = F.pad(images, module._reversed_padding_repeated_twice, mode=mode)
            padding: tuple[int, ...] = (0, 0)
        else:
            padding = module.padding
        patches: Tensor = F.unfold(images, module.kernel_size, module.dilation, padding, module.stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])

    def token_shape(self, inputs: Tensor) -> tuple[int, ...] | None:
        return None


LINEAR = LinearView()
TRANSPOSED = TransposedView()
CONV2D = Conv2dView()
