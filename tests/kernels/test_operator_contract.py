"""Every operator that the package registers passes torch's own checks: schema, autograd, fake tensors, AOT dispatch.

Arguments are those of real calls: layers of every layout run forward and backward, and whatever reaches the dispatcher
is kept. A new operator is covered as soon as a call here reaches it; one that none reaches fails by name.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_weights import obeying_mask, random_weight
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsewright.core import parse_pattern
from sparsewright.kernels import conv2d, linear
from sparsewright.layouts import pack

NAMESPACE = "sparsewright::"


class Recorder(TorchDispatchMode):
    """Keeps the arguments of our operators, once for every form of them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {}
        self.seen: set[tuple[object, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        form = (name, *(_form(value) for value in args))
        if name.startswith(NAMESPACE) and form not in self.seen:
            self.seen.add(form)
            self.calls.setdefault(name, []).append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _form(value: object) -> object:
    """What makes a call another form of it: dtypes, ranks and missing arguments, not sizes."""
    return (value.dtype, value.dim()) if isinstance(value, Tensor) else value is None


def linear_both_ways(text: str, dtype: torch.dtype, bias: bool) -> Callable[[], None]:
    """A layer forward, backward, and backward of the backward."""

    def call() -> None:
        pattern = parse_pattern(text)
        weight = random_weight(16, 32)
        packed = pack(weight, obeying_mask(weight, pattern), pattern=pattern, value_dtype=dtype)
        x = torch.randn(5, 32, requires_grad=True)
        y = linear(x, packed, torch.randn(16, requires_grad=True) if bias else None)
        (of_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        of_x.square().sum().backward()

    return call


def trained() -> None:
    """A layer whose kept values take a gradient, with the gradient of that gradient."""
    pattern = parse_pattern("2:4x4")
    weight = random_weight(16, 32)
    tensors = pack(weight, obeying_mask(weight, pattern), pattern=pattern).tensors
    values = tensors["values"].clone().requires_grad_()
    x = torch.randn(5, 32, requires_grad=True)
    y = torch.ops.sparsewright.linear(x, values, tensors["index"], tensors["pointers"], None, 16)
    (of_values,) = torch.autograd.grad(y.square().sum(), values, create_graph=True)
    of_values.square().sum().backward()


def convolution() -> None:
    """A packed convolution, forward and backward."""
    pattern = parse_pattern("2:4x4")
    weight = random_weight(16, 72)
    packed = pack(weight, obeying_mask(weight, pattern), pattern=pattern)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    bias = torch.randn(16, requires_grad=True)
    conv2d(x, packed, bias, kernel_size=3, padding=1).square().sum().backward()


CALLS: dict[str, Callable[[], None]] = {
    "vector": linear_both_ways("2:4x4", torch.float32, True),
    "plain": linear_both_ways("2:4", torch.float32, False),
    "half": linear_both_ways("1:4x4", torch.float16, True),
    "int8": linear_both_ways("2:4x4", torch.int8, True),
    "int8 without bias": linear_both_ways("2:4x4", torch.int8, False),
    "int8 weights": linear_both_ways("2:4", torch.int8, True),
    "n:m:g": linear_both_ways("3:6:4", torch.float32, True),
    "trained": trained,
    "convolution": convolution,
}


def registered() -> list[str]:
    """Names of our operators in this process."""
    names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    ours = sorted(name for name in names if name.startswith(NAMESPACE))
    # Others run on CUDA devices, or are carried by tensor subclasses.
    return [name for name in ours if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")]


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    torch.manual_seed(0)
    with Recorder() as recorder:
        for call in CALLS.values():
            call()
    return recorder.calls


def test_the_calls_here_reach_every_registered_operator(recorded: dict[str, Any]) -> None:
    assert {"sparsewright::linear", "sparsewright::int8_linear"} <= set(registered())
    assert [name for name in registered() if name not in recorded] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", registered())
def test_it_passes_the_checks_of_torch(recorded: dict[str, Any], name: str) -> None:
    for overload, args, kwargs in recorded.get(name, []):
        torch.library.opcheck(overload, _asking_for_gradients(args), kwargs)


def _asking_for_gradients(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, the first (the activation or its gradient) asking for a gradient where it can have one."""
    first, *rest = (value.detach().clone() if isinstance(value, Tensor) else value for value in args)
    if isinstance(first, Tensor) and first.is_floating_point():
        first.requires_grad_()
    return (first, *rest)
