"""Operators from outside join the candidates; where none is able an error shows how to write one, or dense is asked."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.core import KernelError, RegistryError
from sparsewright.kernels import which
from sparsewright.layouts import PackedWeight
from sparsewright.nn import (
    AbstractLinear,
    PackedLinear,
    SparseTensor,
    as_parameter,
    dense_layers,
    implements,
    operators,
    register_operator,
)
from sparsewright.nn.sparse_tensor import FUNCTIONS, OPERATORS

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def bitmask(trainable: bool = False) -> tuple[PackedWeight, Tensor]:
    """A weight in a layout that no kernel of this package multiplies, and the same dense."""
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    mask = sw.solve_mask(weight.abs(), "2:4")
    packed = sw.pack(weight, mask, layout="bitmask", pattern="2:4")
    packed.tensors["values"].requires_grad_(trainable)
    return packed, torch.where(mask, weight, 0)


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def packed_layer() -> tuple[nn.Linear, Tensor]:
    packed, dense = bitmask()
    layer = nn.Linear(16, 8)
    layer.weight = as_parameter(SparseTensor(packed))
    return layer, dense


@pytest.fixture
def forget() -> Iterator[list[str]]:
    """Names of operators to take out again."""
    names: list[str] = []
    yield names
    for name in names:
        operators.remove(name)


def from_stub(message: str, forget: list[str], fill: dict[str, str]) -> dict[str, Any]:
    """Paste the stub of an error message, filled in, and run it."""
    stub = message.split("fill this in:\n\n", 1)[1]
    for gap, filling in fill.items():
        assert gap in stub
        stub = stub.replace(gap, filling)
    forget.extend(re.findall(r'register_operator\("(\w+)"\)', stub))
    namespace: dict[str, Any] = {}
    exec(compile(stub, "stub", "exec"), namespace)
    return namespace


def test_a_missing_kernel_names_every_candidate_with_its_reason() -> None:
    packed, _ = bitmask()
    with pytest.raises(KernelError) as caught:
        sw.linear(batch(3, 16), packed)
    reasons = sw.why_not(packed, 3)
    assert {"token_lane", "row_lane", "single_token", "int8_lane", "masked_dense"} <= set(reasons)
    assert all(f"{name}: {'; '.join(against)}".split(";")[0] in str(caught.value) for name, against in reasons.items())


def test_the_stub_of_the_error_works_when_pasted_and_filled(forget: list[str]) -> None:
    packed, dense = bitmask()
    x = batch(3, 16).requires_grad_()
    bias = batch(8).requires_grad_()
    with pytest.raises(KernelError) as caught:
        sw.linear(x, packed, bias)
    fill = {
        "y = ...": "y = x @ packed.unpack().to(x.dtype).T",
        "grad_x = ...": "grad_x = grad @ packed.unpack().to(grad.dtype)",
    }
    from_stub(str(caught.value), forget, fill)
    y = sw.linear(x, packed, bias)
    torch.testing.assert_close(y, F.linear(x, dense, bias), **CLOSE)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, (2 * y @ dense).detach(), **CLOSE)
    torch.testing.assert_close(bias.grad, (2 * y).sum(0).detach(), **CLOSE)
    assert which(packed, 3) == "bitmask_linear"
    layer, _ = packed_layer()
    (row,) = sw.dispatch_report(layer, tokens=3)
    assert (row.state, row.kernel) == ("packed", "bitmask_linear")


def test_a_stub_that_is_pasted_but_not_filled_fails_and_does_not_run_dense(forget: list[str]) -> None:
    packed, _ = bitmask()
    with pytest.raises(KernelError) as caught:
        sw.linear(batch(3, 16), packed)
    from_stub(str(caught.value), forget, {})
    with pytest.raises(TypeError):
        sw.linear(batch(3, 16), packed, batch(8))


def test_a_weight_whose_dtype_no_kernel_takes_finds_a_registered_operator(forget: list[str]) -> None:
    weight = batch(8, 16)
    mask = sw.solve_mask(weight.abs(), "2:4")
    packed = sw.pack(weight, mask, layout="vector", pattern="2:4", value_dtype=torch.bfloat16)
    with pytest.raises(KernelError, match="float32 and float16 values"):
        sw.linear(batch(3, 16), packed)

    @register_operator("bfloat16_vector")
    class Bfloat16(AbstractLinear):
        layout = "vector"

        def forward(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
            return F.linear(x, packed.unpack().to(x.dtype), bias)

    forget.append("bfloat16_vector")
    torch.testing.assert_close(sw.linear(batch(3, 16), packed), batch(3, 16) @ packed.unpack().float().T, **CLOSE)


def test_without_a_backward_torch_differentiates_the_forward(forget: list[str]) -> None:
    @register_operator("forward_only")
    class ForwardOnly(AbstractLinear):
        layout = "bitmask"

        def forward(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
            return F.linear(x, packed.unpack(), bias)

    forget.append("forward_only")
    packed, dense = bitmask(trainable=True)
    x = batch(3, 16)
    sw.linear(x, packed).square().sum().backward()
    expected = (2 * x @ dense.T).T @ x
    torch.testing.assert_close(packed.tensors["values"].grad, expected[dense != 0], **CLOSE)


def test_a_backward_that_forgets_a_trainable_tensor_is_told_of(forget: list[str]) -> None:
    @register_operator("forgetful")
    class Forgetful(AbstractLinear):
        layout = "bitmask"

        def forward(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
            return F.linear(x, packed.unpack(), bias)

        def backward(self, grad: Tensor, x: Tensor, packed: PackedWeight) -> tuple[Tensor, dict[str, Tensor]]:
            return grad @ packed.unpack(), {}

    forget.append("forgetful")
    layer = PackedLinear(bitmask()[0], trainable=["values"])
    with pytest.raises(KernelError, match="'values' of the packed weight requires a gradient, the backward of 'forget"):
        layer(batch(3, 16)).sum().backward()


def test_the_wrong_shape_of_x_or_bias_is_named_before_the_operator_runs(forget: list[str]) -> None:
    packed, _ = bitmask()
    with pytest.raises(KernelError) as caught:
        sw.linear(batch(3, 16), packed)
    from_stub(str(caught.value), forget, {})
    with pytest.raises(KernelError, match=r"\(\.\.\., 16\), got \(3, 15\)"):
        sw.linear(batch(3, 15), packed)
    with pytest.raises(KernelError, match=r"bias of shape \(8,\), got \(7,\)"):
        sw.linear(batch(3, 16), packed, batch(7))


# Dense on request.


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16), (0, 16)])
def test_dense_runs_on_request_only_and_is_right(shape: tuple[int, ...]) -> None:
    packed, dense = bitmask()
    x, bias = batch(*shape), batch(8)
    torch.testing.assert_close(sw.linear(x, packed, bias, on_missing="dense"), F.linear(x, dense, bias), **CLOSE)
    with pytest.raises(KernelError):
        sw.linear(x, packed, bias)
    with pytest.raises(KernelError, match="'error' or 'dense', got 'maybe'"):
        sw.linear(x, packed, bias, on_missing="maybe")  # type: ignore[arg-type]


def test_every_dense_run_is_counted_in_the_report() -> None:
    layer, dense = packed_layer()
    model = nn.Sequential(layer, nn.ReLU())
    x = batch(3, 16)
    with pytest.raises(KernelError, match=r"on_missing\('dense'\)"):
        model(x)
    assert dense_layers(model) == 0
    with sw.on_missing("dense"):
        for _ in range(3):
            y = model(x)
    torch.testing.assert_close(y, F.relu(F.linear(x, dense, layer.bias)), **CLOSE)
    (row,) = sw.dispatch_report(model)
    assert (row.state, row.kernel, row.dense_runs) == ("dense", "torch dense (on request)", 3)
    assert dense_layers(model) == 1
    with pytest.raises(KernelError):
        model(x)


def test_dense_on_request_gives_gradients_of_x_and_bias_and_refuses_those_of_packed_tensors() -> None:
    layer, dense = packed_layer()
    x = batch(3, 16).requires_grad_()
    with sw.on_missing("dense"):
        y = layer(x)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, (2 * y @ dense).detach(), **CLOSE)
    torch.testing.assert_close(layer.bias.grad, (2 * y).sum(0).detach(), **CLOSE)
    with pytest.raises(KernelError, match="no gradient to packed tensors"):
        sw.linear(x, bitmask(trainable=True)[0], on_missing="dense")


def test_an_input_dtype_without_a_kernel_runs_dense_on_request_too() -> None:
    weight = batch(8, 16)
    packed = sw.pack(weight, sw.solve_mask(weight.abs(), "2:4"), pattern="2:4")
    x = batch(3, 16).double()
    with pytest.raises(KernelError, match="float32"):
        sw.linear(x, packed)
    y = sw.linear(x, packed, on_missing="dense")
    assert torch.equal(y, F.linear(x, packed.unpack().double()))


def test_a_kernel_that_is_there_is_used_whatever_is_asked_for() -> None:
    weight = batch(8, 16)
    packed = sw.pack(weight, sw.solve_mask(weight.abs(), "2:4"), pattern="2:4")
    layer = nn.Linear(16, 8)
    layer.weight = as_parameter(SparseTensor(packed))
    with sw.on_missing("dense"), torch.no_grad():
        layer(batch(3, 16))
    (row,) = sw.dispatch_report(layer, tokens=3)
    assert (row.state, row.dense_runs) == ("packed", 0)


@pytest.mark.slow
def test_compiled_models_obey_and_count_every_run() -> None:
    torch._dynamo.reset()
    layer, dense = packed_layer()
    x = batch(3, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), sw.on_missing("dense"):
        for _ in range(3):
            y = compiled(x)
    torch.testing.assert_close(y, F.linear(x, dense, layer.bias), **CLOSE)
    (row,) = sw.dispatch_report(layer)
    assert row.dense_runs == 3
    with torch.no_grad(), pytest.raises(Exception, match="No kernel runs sparse linear"):
        compiled(x)


def test_the_dense_operator_meets_what_torch_asks_of_an_operator() -> None:
    packed, _ = bitmask()
    tensors = packed.tensors
    x = batch(3, 16).requires_grad_()
    arguments = (x, list(tensors.values()), list(tensors), "bitmask", "2:4", torch.float32, batch(8), 8, 16)
    torch.library.opcheck(torch.ops.sparsewright.dense_linear.default, arguments)


# Other operations.


def test_an_operation_of_ones_own_joins_by_its_stub_and_only_once() -> None:
    weight = SparseTensor(bitmask()[0])
    with pytest.raises(KernelError, match=r"(?s)To add a kernel.*implements") as caught:
        weight.exp()
    stub = str(caught.value).split("fill this in:\n\n", 1)[1]
    target = torch.ops.aten.exp.default
    try:
        exec(compile(stub.replace("return ...", "return self.dense().exp()"), "stub", "exec"), {})
        assert torch.equal(weight.exp(), weight.dense().exp())
        with pytest.raises(RegistryError, match="already"):
            implements(target)(lambda: None)
    finally:
        OPERATORS.pop(target, None)


def test_a_function_is_served_above_autograd() -> None:
    try:

        @implements(F.gelu)
        def gelu(input: SparseTensor) -> Tensor:
            return F.gelu(input.dense())

        weight = SparseTensor(bitmask()[0])
        assert torch.equal(F.gelu(weight), F.gelu(weight.dense()))
    finally:
        FUNCTIONS.pop(F.gelu, None)


def test_other_operations_run_dense_on_request_counted_and_never_in_place() -> None:
    layer = nn.Linear(16, 8)
    layer.weight = as_parameter(SparseTensor(bitmask()[0]))
    with sw.on_missing("dense"), torch.no_grad():
        assert torch.equal(layer.weight.sum(), layer.weight.dense().sum())
        with pytest.raises(KernelError):
            layer.weight.exp_()
    assert sw.dispatch_report(layer)[0].dense_runs == 1
