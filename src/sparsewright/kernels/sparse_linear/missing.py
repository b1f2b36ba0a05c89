"""Dense execution where no kernel is able: only on request, and always counted.

It is an operator of its own, `sparsewright::dense_linear`: it stands in compiled and exported graphs under
that name, and every run of it is counted, compiled or not.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from ...core import KernelError, parse_pattern
from ...layouts import PackedWeight
from .library import library

OnMissing = Literal["error", "dense"]


@final
class _Policy:
    # A plain attribute: torch.compile guards on it where it traces the read, on a context variable it would not.
    on_missing: OnMissing = "error"


_policy = _Policy()
_runs: Counter[int] = Counter()

library.define(
    "dense_linear(Tensor x, Tensor[] tensors, str[] names, str layout, str pattern, ScalarType value_dtype,"
    " Tensor? bias, SymInt out, SymInt in_) -> Tensor"
)
library.define(
    "dense_linear_input_grad(Tensor grad, Tensor[] tensors, str[] names, str layout, str pattern,"
    " ScalarType value_dtype, SymInt out, SymInt in_) -> Tensor"
)


def missing_choice(on_missing: str | None = None) -> OnMissing:
    """What a call does without a kernel: as it says, else as the surrounding `on_missing` says."""
    if on_missing is None:
        return _policy.on_missing
    if on_missing not in get_args(OnMissing):
        raise KernelError(f"on_missing is 'error' or 'dense', got {on_missing!r}.")
    return "dense" if on_missing == "dense" else "error"


@contextmanager
def on_missing(choice: OnMissing) -> Iterator[None]:
    """What packed weights do inside the block where no kernel is able.

    It holds for the whole process, in every thread, until the block ends. Compiled models obey it: torch.compile
    compiles again for the other choice.

    Args:
        choice: `error` (what holds without this block) or `dense`: unpack and multiply densely on every call, which
            `dispatch_report` counts.
    """
    before = _policy.on_missing
    _policy.on_missing = missing_choice(choice)
    try:
        yield
    finally:
        _policy.on_missing = before


def run_dense(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` with W unpacked for this one call; gradients reach x and bias."""
    out, in_ = packed.shape
    if x.dim() == 0 or x.shape[-1] != in_:
        raise KernelError(f"Sparse linear takes x of shape (..., {in_}), got {tuple(x.shape)}.")
    tensors = packed.tensors
    result: Tensor = torch.ops.sparsewright.dense_linear(
        x,
        list(tensors.values()),
        list(tensors),
        packed.layout,
        str(packed.pattern),
        packed.value_dtype,
        bias,
        out,
        in_,
    )
    return result


def dense_runs(packed: PackedWeight) -> int:
    """How often this weight ran dense on request since it came into its module."""
    return _runs.get(_address(list(packed.tensors.values())), 0)


def count_dense_run(packed: PackedWeight) -> None:
    """Count a dense execution of another operation than linear."""
    _runs[_address(list(packed.tensors.values()))] += 1


def forget_dense_runs(packed: PackedWeight) -> None:
    """Start counting anew: a weight has come to memory that another one may have had."""
    tensors = list(packed.tensors.values())
    if all(type(tensor) in (Tensor, Parameter) for tensor in tensors):  # tracers have no memory
        _runs.pop(_address(tensors), None)


def _address(tensors: list[Tensor]) -> int:
    # Inside a compiled graph the tensors are all that is left of a weight.
    return next((tensor.data_ptr() for tensor in tensors if tensor.numel()), 0)


def _unpacked(
    tensors: list[Tensor], names: list[str], layout: str, pattern: str, value_dtype: torch.dtype, out: int, in_: int
) -> Tensor:
    held = dict(zip(names, tensors))
    return PackedWeight(layout, parse_pattern(pattern), (out, in_), value_dtype, held).unpack()


def _dense_linear(
    x: Tensor,
    tensors: list[Tensor],
    names: list[str],
    layout: str,
    pattern: str,
    value_dtype: torch.dtype,
    bias: Tensor | None,
    out: int,
    in_: int,
) -> Tensor:
    _runs[_address(tensors)] += 1
    weight = _unpacked(tensors, names, layout, pattern, value_dtype, out, in_)
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias)


def _dense_linear_fake(x: Tensor, tensors: list[Tensor], *about: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], about[-2])


def _input_grad(grad: Tensor, tensors: list[Tensor], *about: Any) -> Tensor:
    return grad @ _unpacked(tensors, *about).to(grad.dtype)


def _input_grad_fake(grad: Tensor, tensors: list[Tensor], *about: Any) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], about[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, names, layout, pattern, value_dtype, bias, out, in_ = inputs
    ctx.save_for_backward(*tensors)
    ctx.about, ctx.has_bias = (names, layout, pattern, value_dtype, out, in_), bias is not None
    if any(tensor.requires_grad for tensor in tensors):
        raise KernelError(
            "Dense execution on request gives no gradient to packed tensors. Register an operator with a backward for "
            f"the layout {layout!r}, or call requires_grad_(False) on its tensors."
        )


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    of_x = torch.ops.sparsewright.dense_linear_input_grad(grad, list(ctx.saved_tensors), *ctx.about)
    of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.has_bias else None
    return of_x, [None] * len(ctx.saved_tensors), None, None, None, None, of_bias, None, None


library.impl("dense_linear", _dense_linear, "CompositeExplicitAutograd")
library.impl("dense_linear_input_grad", _input_grad, "CompositeExplicitAutograd")
torch.library.register_fake("sparsewright::dense_linear", _dense_linear_fake, lib=library)
torch.library.register_fake("sparsewright::dense_linear_input_grad", _input_grad_fake, lib=library)
torch.library.register_autograd("sparsewright::dense_linear", _backward, setup_context=_keep, lib=library)
