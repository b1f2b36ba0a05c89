"""Weights in a layout of one's own train as any packed weight does, where a registered operator multiplies them."""

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import sparsewright as sw
from sparsewright.core import AbstractPattern, KernelError, ModelError
from sparsewright.layouts import AbstractPlainLayout, PackedWeight, layouts, pack
from sparsewright.nn import (
    AbstractLinear,
    SparseTensor,
    allow_loading,
    as_parameter,
    operators,
    register_operator,
    train_packed_,
)
from sparsewright.solvers import solve_mask

# Float32 sums in another order, carried through five steps.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


class Triplets(AbstractPlainLayout):
    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        rows, columns = mask.nonzero(as_tuple=True)
        tensors = {"values": weight[mask].to(value_dtype), "rows": rows, "columns": columns}
        return PackedWeight("triplets", pattern, (weight.shape[0], weight.shape[1]), value_dtype, tensors)

    def unpack(self, packed: PackedWeight) -> Tensor:
        values, rows, columns = packed.tensors.values()
        return values.new_zeros(packed.shape).index_put((rows, columns), values)


class Scaled(Triplets):
    """With a second floating-point tensor."""

    def pack(self, weight: Tensor, mask: Tensor, pattern: AbstractPattern, value_dtype: torch.dtype) -> PackedWeight:
        plain = super().pack(weight, mask, pattern, value_dtype)
        tensors = {**plain.tensors, "scale": torch.ones(weight.shape[0])}
        return PackedWeight("scaled", pattern, plain.shape, value_dtype, tensors)

    def unpack(self, packed: PackedWeight) -> Tensor:
        values, rows, columns, scale = packed.tensors.values()
        return values.new_zeros(packed.shape).index_put((rows, columns), values) * scale[:, None]


class Forward(AbstractLinear):
    layout = "triplets"

    def forward(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        values, rows, columns = list(packed.tensors.values())[:3]
        y = x.new_zeros(*x.shape[:-1], packed.shape[0]).index_add(-1, rows, x[..., columns] * values)
        return y if bias is None else y + bias


class Backward(Forward):
    def backward(self, grad: Tensor, x: Tensor, packed: PackedWeight) -> tuple[Tensor, dict[str, Tensor]]:
        values, rows, columns = packed.tensors.values()
        of_x = torch.zeros_like(x).index_add(-1, columns, grad[..., rows] * values)
        return of_x, {"values": (grad[..., rows] * x[..., columns]).flatten(0, -2).sum(0)}


@pytest.fixture(params=[Forward, Backward], ids=["torch's backward", "a written backward"])
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    layouts.register("triplets")(Triplets)
    register_operator("triplets")(type("Own", (request.param,), {}))
    yield
    operators.remove("triplets")
    layouts.remove("triplets")


def pair() -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """A model with a weight in that layout, the same one dense, and its mask."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(24, 36), nn.Tanh(), nn.Linear(36, 3))
    packed = copy.deepcopy(dense)
    weight = dense[0].weight.detach().clone()
    mask = solve_mask(weight.abs(), "30%")
    with torch.no_grad():
        dense[0].weight.mul_(mask)
    packed[0].weight = as_parameter(SparseTensor(pack(weight, mask, "triplets", "30%")))
    return packed, dense, mask


def trained(model: nn.Module, mask: Tensor | None, run: Any = None) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, eps=1e-3, weight_decay=0.1)
    for step in range(5):
        x = torch.randn(17, 24, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (run or model)(x).square().mean().backward()
        if mask is not None:
            model[0].weight.grad.mul_(mask)  # type: ignore[index, union-attr]
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


@pytest.mark.usefixtures("registered")
def test_it_trains_step_by_step_as_the_masked_dense_layer_does() -> None:
    packed, dense, mask = pair()
    assert train_packed_(packed) == ["0.weight"]
    trained(packed, None)
    trained(dense, mask)
    assert isinstance(packed[0].weight.grad, SparseTensor)
    assert packed[0].weight.packed.layout == "triplets"
    torch.testing.assert_close(packed[0].weight.dense(), dense[0].weight.detach(), **CLOSE)
    torch.testing.assert_close(packed[2].weight, dense[2].weight, **CLOSE)


@pytest.mark.usefixtures("registered")
def test_a_state_dict_is_copied_in_place_and_read_with_weights_only() -> None:
    allow_loading()
    packed, fresh = pair()[0], pair()[0]
    train_packed_(packed)
    trained(packed, None)
    stream = io.BytesIO()
    torch.save(packed.state_dict(), stream)
    stream.seek(0)
    values = fresh[0].weight.packed.tensors["values"]
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    assert fresh[0].weight.packed.tensors["values"] is values
    assert torch.equal(fresh[0].weight.dense(), packed[0].weight.dense())


@pytest.mark.usefixtures("registered")
def test_autocast_decides_the_dtype_of_the_result() -> None:
    packed, _, _ = pair()
    train_packed_(packed)
    x = torch.randn(5, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = packed[0](x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert isinstance(packed[0].weight.grad, SparseTensor)


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_a_compiled_model_trains_alike() -> None:
    compiled, eager = (pair()[0] for _ in range(2))
    for model in (compiled, eager):
        train_packed_(model)
    trained(compiled, None, torch.compile(compiled, fullgraph=True, backend="aot_eager"))
    trained(eager, None)
    torch.testing.assert_close(compiled[0].weight.dense(), eager[0].weight.dense(), **CLOSE)


@pytest.mark.usefixtures("registered")
def test_a_layout_of_several_parameters_is_sent_to_packed_linear() -> None:
    layouts.register("scaled")(Scaled)
    register_operator("scaled")(type("OwnScaled", (Forward,), {"layout": "scaled"}))
    layer = nn.Linear(24, 36)
    weight = layer.weight.detach()
    layer.weight = as_parameter(SparseTensor(pack(weight, solve_mask(weight.abs(), "30%"), "scaled", "30%")))
    try:
        with pytest.raises(ModelError, match=r"'scaled' keeps values, scale where .* train it in .*PackedLinear"):
            train_packed_(layer)
    finally:
        operators.remove("scaled")
        layouts.remove("scaled")


@pytest.mark.usefixtures("registered")
def test_an_operator_that_is_gone_is_missed_by_name() -> None:
    packed, _, _ = pair()
    train_packed_(packed)
    own = operators.get("triplets")
    operators.remove("triplets")
    try:
        with pytest.raises(KernelError, match="the layout 'triplets' has no gradient of its values"):
            packed(torch.randn(2, 24))
    finally:
        operators.register("triplets")(type(own))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_an_input_that_is_not_float32_is_told_in_one_sentence(dtype: torch.dtype) -> None:
    packed, _, _ = pair()
    train_packed_(packed)
    with pytest.raises(KernelError, match=rf"train in float32, got x of {dtype}\. Cast it"):
        packed[0](torch.ones(5, 24, dtype=dtype))


@pytest.mark.usefixtures("registered")
def test_other_values_than_float32_do_not_train() -> None:
    packed, _, mask = pair()
    held = pack(torch.ones(36, 24), mask, "triplets", "30%")
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        coarse = replace(held, value_dtype=dtype, tensors={**held.tensors, "values": held.tensors["values"].to(dtype)})
        packed[0].weight = as_parameter(SparseTensor(coarse))
        with pytest.raises(ModelError, match=rf"train in float32, it has {dtype} values; pack it with float32 values"):
            train_packed_(packed)
    packed[0].weight = as_parameter(SparseTensor(held, dtype=torch.float64))
    with pytest.raises(ModelError, match=r"it is seen as torch\.float64; call \.float\(\) on the model"):
        train_packed_(packed)
    assert train_packed_(packed.float()) == ["0.weight"]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap_and_function_transforms_answer_as_the_dense_layer_does(in_dim: int) -> None:
    packed, dense, _ = pair()
    x = torch.randn(3, 5, 24, requires_grad=True)
    held = packed[0].weight.packed
    biases = torch.randn(x.shape[in_dim], 36)
    found = torch.vmap(lambda z, b: sw.linear(z, held, b), in_dims=(in_dim, 0))(x, biases)
    wanted = torch.vmap(lambda z, b: nn.functional.linear(z, dense[0].weight, b), in_dims=(in_dim, 0))(x, biases)
    torch.testing.assert_close(found, wanted, **CLOSE)
    of_x = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (found, wanted)]
    torch.testing.assert_close(*of_x, rtol=1e-4, atol=1e-4)
    each = [torch.vmap(torch.func.grad(lambda z, m=m: m(z).square().sum()))(x.detach()) for m in (packed, dense)]
    torch.testing.assert_close(*each, rtol=1e-4, atol=1e-4)
    copies = torch.stack([held.tensors["values"], 2 * held.tensors["values"]])
    several = torch.vmap(lambda values: sw.linear(x, replace(held, tensors={**held.tensors, "values": values})))(copies)
    torch.testing.assert_close(several[1], 2 * several[0], **CLOSE)


@pytest.mark.usefixtures("registered")
def test_vmap_over_a_trained_layer_reaches_its_values() -> None:
    packed, dense, mask = pair()
    train_packed_(packed)
    x = torch.randn(3, 5, 24)
    for model in (packed, dense):
        torch.vmap(model)(x).square().sum().backward()
    torch.testing.assert_close(packed[0].weight.grad.dense(), dense[0].weight.grad * mask, rtol=1e-4, atol=1e-4)


def test_a_written_backward_has_no_forward_mode() -> None:
    layouts.register("triplets")(Triplets)
    register_operator("triplets")(type("Own", (Backward,), {}))
    try:
        packed, x = pair()[0], torch.randn(5, 24)
        with pytest.raises(KernelError, match=r"differentiate under torch\.func\.jvp"):
            torch.func.jvp(packed, (x,), (x,))
        with forward_ad.dual_level(), pytest.raises(KernelError, match="no forward-mode derivative"):
            packed(forward_ad.make_dual(x, x))
    finally:
        operators.remove("triplets")
        layouts.remove("triplets")
