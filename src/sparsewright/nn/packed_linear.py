"""`PackedLinear`: a linear layer whose packed tensors are ordinary parameters and buffers: they can be trained."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core import KernelError
from ..kernels import Activation, check_activation, forget_dense_runs, linear, operators
from ..layouts import PackedWeight

_PREFIX = "packed_"


@final
class PackedLinear(nn.Module):
    """`activation(x @ W.T + bias)` with a packed W.

    Optimizers, `state_dict`, DDP and FSDP see plain tensors named `packed_<name>`.

    Args:
        packed: W `(out, in)`; its tensors are taken over, not copied.
        bias: `(out,)`, or None.
        trainable: names of floating-point tensors of W that become parameters; the operator of the layout must be
            differentiable in them. The others become buffers.
        activation: `relu`, `gelu` (its exact form) or `gelu_tanh`, which takes the place of a module behind this one
            and costs no pass over memory of its own: the kernels apply it while outputs are near. None: nothing.

    Raises:
        KernelError: `packed` or `bias` is something else; a name is none of W's tensors, or is not floating point; or
            an unknown activation.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        trainable: Sequence[str] = (),
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(packed, PackedWeight):
            raise KernelError(f"PackedLinear takes a PackedWeight, got {type(packed).__name__}. Make one with sw.pack.")
        floats = isinstance(bias, Tensor) and bias.is_floating_point()
        if bias is not None and not (floats and tuple(bias.shape) == packed.shape[:1]):
            form = f"{tuple(bias.shape)} {bias.dtype}" if isinstance(bias, Tensor) else type(bias).__name__
            raise KernelError(f"PackedLinear takes a floating-point bias of shape ({packed.shape[0]},), got {form}.")
        if isinstance(trainable, str):
            trainable = (trainable,)
        if activation is not None:
            check_activation(activation)
        self.activation = activation
        operators.names()  # plug-ins are read here, because torch.compile cannot read them while it traces
        unable = [
            name for name in trainable if name not in packed.tensors or not packed.tensors[name].is_floating_point()
        ]
        if unable:
            able = [name for name, tensor in packed.tensors.items() if tensor.is_floating_point()]
            raise KernelError(f"Of this weight {', '.join(able) or 'nothing'} can be trained, got {', '.join(unable)}.")
        self._about = (packed.layout, packed.pattern, packed.shape, packed.value_dtype)
        forget_dense_runs(packed)
        self._names = tuple(packed.tensors)
        self._held: PackedWeight | None = None
        for name, tensor in packed.tensors.items():
            if name in trainable:
                self.register_parameter(_PREFIX + name, nn.Parameter(tensor.detach()))
            else:
                self.register_buffer(_PREFIX + name, tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach())

    @property
    def packed(self) -> PackedWeight:
        """W as it is now, around the layer's own tensors; the same object while they are the same."""
        planes = {name: getattr(self, _PREFIX + name) for name in self._names}
        if torch.compiler.is_compiling():
            return PackedWeight(*self._about, planes)
        held = self._held
        if held is None or any(held.tensors[name] is not plane for name, plane in planes.items()):
            held = self._held = PackedWeight(*self._about, planes)
        return held

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        # The dtypes of a packed weight are part of its form, so `.half()` and its like reach the bias only.
        def moved(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            is_plane = any(tensor is getattr(self, _PREFIX + name) for name in self._names)
            return tensor.to(changed.device) if is_plane and changed.dtype != tensor.dtype else changed

        super()._apply(moved, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        bias: Tensor | None = self.bias
        if bias is not None and bias.dtype != x.dtype and x.dtype == torch.float32:
            bias = bias.to(x.dtype)  # after `.half()` and its like, which the packed weight does not follow
        return linear(x, self.packed, bias, self.activation)

    def extra_repr(self) -> str:
        """Layout, pattern, shape and activation."""
        layout, pattern, shape, value_dtype = self._about
        behind = f", activation={self.activation!r}" if self.activation else ""
        return f"{pattern}, shape={shape}, layout={layout!r}, values={value_dtype}{behind}"
