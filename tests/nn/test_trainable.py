"""Packed weights that train: step by step what the masked dense layer does, under any optimizer, and never denser."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import sparsewright as sw
from sparsewright.core import KernelError, ModelError
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor, allow_loading, as_parameter, masks
from sparsewright.solvers import solve_mask

# Float32 sums in another order, carried through ten steps. Weights are about 0.1, a step moves them by 0.01.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
STEPS = 10

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.02, foreach=False),
    "SGD, momentum, decay": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1, foreach=False),
    "SGD, nesterov, foreach": lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=0.1, nesterov=True, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1, fused=True),
    # A large epsilon, because tiny gradients of unlike sign would else make steps of unlike sign.
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3, weight_decay=0.1, foreach=False),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3, amsgrad=True, foreach=False),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3, weight_decay=0.1, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3, weight_decay=0.1, fused=True),
    "Adam, decay": lambda p: torch.optim.Adam(p, 0.01, eps=1e-3, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.005, eps=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, eps=1e-2),
}
PATTERNS = ("2:4x4", "1:4x16", "2:4", "30%", "2x1@40%")


def model_pair(pattern: str = "2:4x4") -> tuple[nn.Sequential, nn.Sequential, list[Tensor]]:
    """A packed model in training, the same one masked and dense, and the masks."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(24, 36), nn.GELU(), nn.Linear(36, 24), nn.Linear(24, 3))
    packed = copy.deepcopy(dense)
    kept = []
    for place in (0, 2):
        weight = dense[place].weight.detach()
        mask = solve_mask(weight.abs(), pattern)
        kept.append(mask)
        with torch.no_grad():
            dense[place].weight.mul_(mask)
        packed[place].weight = as_parameter(SparseTensor(pack(weight, mask, "vector", pattern)), trainable=True)
    return packed, dense, kept


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(17, 24, generator=torch.Generator().manual_seed(step))
    return (model(x) - x[:, :3].sin()).square().mean() * 10


def mask_gradients(dense: nn.Sequential, kept: list[Tensor]) -> None:
    for place, mask in zip((0, 2), kept, strict=True):
        dense[place].weight.grad.mul_(mask)


def assert_same_weights(packed: nn.Sequential, dense: nn.Sequential, kept: list[Tensor]) -> None:
    for place, mask in zip((0, 2), kept, strict=True):
        values = packed[place].weight.dense()
        torch.testing.assert_close(values, dense[place].weight.detach(), **CLOSE)
        assert not values[~mask].any()
        torch.testing.assert_close(packed[place].bias, dense[place].bias, **CLOSE)


def test_gradients_are_packed_and_equal_the_masked_dense_ones() -> None:
    for pattern in PATTERNS:
        packed, dense, kept = model_pair(pattern)
        for _ in range(2):  # the second time they add up
            loss_of(packed, 0).backward()
            loss_of(dense, 0).backward()
        mask_gradients(dense, kept)
        for place in (0, 2):
            grad = packed[place].weight.grad
            assert isinstance(grad, SparseTensor)
            torch.testing.assert_close(grad.dense(), dense[place].weight.grad, **CLOSE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_trains_packed_weights_as_it_trains_masked_ones(name: str) -> None:
    for pattern in ("2:4x4", "2:4"):
        packed, dense, kept = model_pair(pattern)
        ours, theirs = OPTIMIZERS[name](packed.parameters()), OPTIMIZERS[name](dense.parameters())
        before = packed[0].weight.dense()
        for step in range(STEPS):
            for model, optimizer in ((packed, ours), (dense, theirs)):
                optimizer.zero_grad(set_to_none=bool(step % 2))
                for part in range(2):
                    loss_of(model, 2 * step + part).backward()
                if model is dense:
                    mask_gradients(dense, kept)
                clip_grad_norm_(model.parameters(), 0.5, foreach=step % 2 == 1)
                optimizer.step()
            assert_same_weights(packed, dense, kept)
        assert not torch.equal(packed[0].weight.dense(), before)


def test_clipping_sees_the_norm_of_the_masked_gradient() -> None:
    packed, dense, kept = model_pair()
    loss_of(packed, 0).backward()
    loss_of(dense, 0).backward()
    mask_gradients(dense, kept)
    for order in (1.0, 2.0, math.inf):
        ours = clip_grad_norm_(copy_of_gradients(packed), 0.1, norm_type=order)
        theirs = clip_grad_norm_(copy_of_gradients(dense), 0.1, norm_type=order)
        torch.testing.assert_close(ours, theirs)
    clip_grad_value_(packed.parameters(), 1e-3)
    assert float(packed[0].weight.grad.dense().abs().max()) <= 1e-3 + 1e-9


def copy_of_gradients(model: nn.Module) -> list[nn.Parameter]:
    copied = copy.deepcopy(model)
    for parameter, source in zip(copied.parameters(), model.parameters(), strict=True):
        parameter.grad = source.grad.clone()
    return list(copied.parameters())


def test_the_optimizer_state_is_as_small_as_the_weights_and_loads_again() -> None:
    allow_loading()
    packed, _, _ = model_pair("1:4x16")
    optimizer = torch.optim.AdamW(packed.parameters(), 0.01)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(packed, step).backward()
        optimizer.step()
    state = optimizer.state[packed[0].weight]["exp_avg"]
    assert isinstance(state, SparseTensor)
    assert state.packed.tensors["values"].shape == packed[0].weight.packed.tensors["values"].shape
    stream = io.BytesIO()
    torch.save({"model": packed.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    fresh, _, _ = model_pair("1:4x16")
    fresh.load_state_dict(saved["model"])
    again = torch.optim.AdamW(fresh.parameters(), 0.01)
    again.load_state_dict(saved["optimizer"])
    for model, steps in ((packed, optimizer), (fresh, again)):
        steps.zero_grad()
        loss_of(model, 9).backward()
        steps.step()
    assert torch.equal(packed[0].weight.dense(), fresh[0].weight.dense())
    assert torch.equal(packed[2].weight.dense(), fresh[2].weight.dense())


def test_training_is_seen_by_every_kernel_at_once() -> None:
    for pattern in PATTERNS:
        packed, _, _ = model_pair(pattern)
        x = torch.randn(9, 24, requires_grad=True)
        for step in range(3):
            weight = packed[0].weight.dense()
            with torch.no_grad():
                for tokens in (1, 9):
                    expected = F.linear(x[:tokens], weight, packed[0].bias)
                    torch.testing.assert_close(packed[0](x[:tokens]), expected, **CLOSE)
            (of_x,) = torch.autograd.grad(packed[0](x).sum(), x)
            torch.testing.assert_close(of_x, torch.ones(9, 36) @ weight, **CLOSE)
            packed.zero_grad()
            loss_of(packed, step).backward()
            with torch.no_grad():
                for parameter in packed.parameters():
                    parameter.sub_(parameter.grad, alpha=0.1)


def test_a_change_between_forward_and_backward_is_noticed() -> None:
    packed, _, _ = model_pair()
    loss = loss_of(packed, 0)
    with torch.no_grad():
        packed[2].weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_conv1d_of_transformers_trains_transposed() -> None:
    from transformers.pytorch_utils import Conv1D

    weight = torch.randn(32, 24)
    packed = pack(weight, solve_mask(weight.abs(), "2:4"), "vector", "2:4")
    layer = Conv1D(32, 24)
    layer.weight = as_parameter(SparseTensor(packed, transposed=True), trainable=True)
    dense = SparseTensor(packed).dense().requires_grad_()
    x = torch.randn(5, 24)
    layer(x).square().sum().backward()
    F.linear(x, dense, layer.bias).square().sum().backward()
    assert layer.weight.grad.shape == (24, 32)
    mask = SparseTensor(packed).dense() != 0
    torch.testing.assert_close(layer.weight.grad.dense(), (dense.grad * mask).T, rtol=1e-4, atol=1e-3)
    torch.optim.AdamW(layer.parameters(), fused=True).step()
    other = as_parameter(SparseTensor(packed), trainable=True)
    (x @ other.T + layer.bias).square().sum().backward()
    assert other.grad.shape == (32, 24)


def test_a_tied_weight_gathers_both_gradients() -> None:
    torch.manual_seed(0)
    square = torch.randn(24, 24)
    mask = solve_mask(square.abs(), "2:4x4")
    shared = as_parameter(SparseTensor(pack(square, mask, "vector", "2:4x4")), trainable=True)
    twice = (square * mask).requires_grad_()
    x = torch.randn(5, 24)
    F.linear(F.linear(x, shared).tanh(), shared).sum().backward()
    F.linear(F.linear(x, twice).tanh(), twice).sum().backward()
    torch.testing.assert_close(shared.grad.dense(), twice.grad * mask, rtol=1e-4, atol=1e-3)


def test_train_packed_opens_and_freezes_every_packed_weight_of_a_model() -> None:
    model, _, _ = model_pair()
    assert sw.train_packed_(model, trainable=False) == ["0.weight", "2.weight"]
    assert not model[0].weight.requires_grad
    weight = model[0].weight
    assert sw.train_packed_(model) == ["0.weight", "2.weight"]
    assert model[0].weight is weight
    assert weight.requires_grad
    assert copy.deepcopy(model)[0].weight.requires_grad
    assert {name: int(mask.sum()) for name, mask in masks(model).items()} == {"0": 432, "2": 432}


@pytest.mark.parametrize(
    "layout, value_dtype, match",
    [
        ("masked", torch.float32, "layout 'masked'"),
        ("vector", torch.float16, r"train in float32, it has torch\.float16 values; pack it with float32"),
        ("int8", torch.int8, "layout 'int8'"),
    ],
)
def test_what_cannot_train_says_why_in_one_sentence(layout: str, value_dtype: torch.dtype, match: str) -> None:
    mask = (torch.arange(64) % 4 < 2).expand(32, 64)
    held = SparseTensor(pack(torch.randn(32, 64), mask, layout, "2:4x4", value_dtype))
    layer = nn.Linear(64, 32)
    layer.weight = as_parameter(held)
    with pytest.raises(ModelError, match=f"weight: .*{match}"):
        sw.train_packed_(layer)
    layer.weight = as_parameter(held, trainable=True)
    # Whoever asks it of every parameter alike leaves it frozen, and the layer runs.
    for weight in (layer.weight, layer.requires_grad_().weight):
        weight.requires_grad = True
        assert not weight.requires_grad
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("layout", ["vector", "int8", "int8_weights", "nmg"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_a_state_dict_assigns_to_a_dense_model_trains_if_it_can(layout: str, device: str) -> None:
    pattern = "3:6:4" if layout == "nmg" else "2:4x4"
    weight = torch.randn(36, 24)
    dtype = torch.int8 if layout.startswith("int8") else torch.float32
    source = nn.Linear(24, 36)
    source.weight = as_parameter(SparseTensor(pack(weight, solve_mask(weight.abs(), pattern), layout, pattern, dtype)))
    model = nn.Linear(24, 36, device=device)
    model.load_state_dict(source.state_dict(), assign=True)
    assert isinstance(model.weight, SparseTensor)
    assert isinstance(model.weight, nn.Parameter)
    assert model.weight.requires_grad == (layout == "vector")
    x = torch.randn(5, 24)
    model(x).sum().backward()
    assert model.bias.grad is not None
    with torch.no_grad():
        assert torch.equal(model(x), source(x))


def test_a_trained_weight_that_leaves_float32_says_that_it_is_frozen() -> None:
    model, x = model_pair()[0], torch.randn(5, 24)
    with pytest.warns(UserWarning, match=r"frozen from now on: packed weights train in float32"):
        model.bfloat16()
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    model(x.bfloat16()).sum().backward()


def test_a_model_without_packed_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="no packed weight"):
        sw.train_packed_(nn.Linear(4, 4))


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w + w.packed.tensors["values"].sum(),
        lambda w: w + 1,
        lambda w: w * torch.ones(36, 24),
        lambda w: w / w,
        lambda w: w.add_(torch.ones(36, 24)),
        lambda w: torch.ones(36, 24).add_(w),
        lambda w: torch.full_like(w, 2.0),
        lambda w: torch.zeros_like(w, dtype=torch.float64),
        lambda w: torch.linalg.vector_norm(w, dim=0),
        lambda w: torch.optim.SGD([w], 0.1).state.update(x=w.sum()),
    ],
)
def test_arithmetic_that_would_leave_the_pattern_raises(operation: Callable[[Any], Any]) -> None:
    weight = model_pair()[0][0].weight.detach()
    with pytest.raises(KernelError, match=r"\.dense\(\)"):
        operation(weight)


def test_values_of_other_places_never_mix() -> None:
    one, other = (SparseTensor(pack(torch.ones(8, 8), mask, "vector", "2:4")) for mask in two_masks())
    with pytest.raises(KernelError, match="the same places"):
        one.add_(other)
    with pytest.raises(KernelError, match="the same places"):
        torch._foreach_add_([one, torch.ones(3)], [other, torch.ones(3)])
    doubled = one + one.clone()
    assert torch.equal(doubled.dense(), 2 * one.dense())
    assert torch.equal((one * 3 - one).dense(), 2 * one.dense())


def two_masks() -> list[Tensor]:
    return [(torch.arange(8) % 4 // 2 == half).expand(8, 8) for half in (0, 1)]


def test_a_dense_product_below_python_is_refused_rather_than_trained_densely() -> None:
    weight = model_pair()[0][0].weight
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(KernelError, match="would be dense"):
        F.linear(torch.randn(2, 24), weight)


def test_a_trained_model_saves_and_loads_to_the_same_bits(tmp_path: Any) -> None:
    packed, _, _ = model_pair()
    optimizer = torch.optim.AdamW(packed.parameters(), 0.01)
    loss_of(packed, 0).backward()
    optimizer.step()
    path = tmp_path / "model.safetensors"
    sw.save(packed, path)
    dense = model_pair()[1]
    loaded = sw.load(path, model=dense)
    x = torch.randn(5, 24)
    with torch.no_grad():
        assert torch.equal(loaded(x), packed(x))
    assert sw.train_packed_(loaded) == ["0.weight", "2.weight"]
    loss_of(loaded, 1).backward()
    assert isinstance(loaded[0].weight.grad, SparseTensor)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_training_step_equals_the_eager_one(backend: str) -> None:
    compiled_model, eager_model = model_pair()[0], model_pair()[0]
    step = torch.compile(lambda x: (compiled_model(x) - x[:, :3].sin()).square().mean() * 10, backend=backend)
    optimizers = [torch.optim.AdamW(model.parameters(), 0.01) for model in (compiled_model, eager_model)]
    for number in range(3):
        x = torch.randn(17, 24, generator=torch.Generator().manual_seed(number))
        for optimizer in optimizers:
            optimizer.zero_grad()
        step(x).backward()
        loss_of(eager_model, number).backward()
        for ours, theirs in zip(compiled_model.parameters(), eager_model.parameters(), strict=True):
            assert type(ours.grad) is type(theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
    for place in (0, 2):
        ours, theirs = compiled_model[place].weight, eager_model[place].weight
        torch.testing.assert_close(ours.dense(), theirs.dense(), **CLOSE)
