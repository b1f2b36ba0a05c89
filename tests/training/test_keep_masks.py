"""Laws of `keep_masks_`: after every step of every optimiser the zeros are where the mask wants them, and kept weights
move exactly as if the mask were part of the model."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from sparsewright import keep_masks_, sparsify_
from sparsewright.core import ModelError
from sparsewright.nn import masks
from sparsewright.training import masked_weights

MakeOptimizer = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "sgd fused": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, foreach=True, amsgrad=True),
    "adamw fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
}
EVERY_OPTIMIZER = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


class Small(nn.Module):
    """A convolution, two linears, a norm; about what a network has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 16, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm(64)
        self.first = nn.Linear(64, 48)
        self.second = nn.Linear(48, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.relu(self.conv(x)).mean(1).flatten(1))
        return self.second(torch.relu(self.first(hidden)))


def masked(model: nn.Module | None = None) -> nn.Module:
    model = Small() if model is None else model
    rules = {"conv": "25%", "first": "2:4", "second": "1:4x4"}
    sparsify_(model, rules)
    return model


def data(steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, 8, 8, generator=generator), torch.randn(8, 64, generator=generator)) for _ in range(steps)
    ]


def obeys(model: nn.Module) -> bool:
    return all(not weight.parameter.detach()[weight.dropped].any() for weight in masked_weights(model))


def counted(model: nn.Module) -> int:
    return sum(int(weight.dropped.sum()) for weight in masked_weights(model))


class MaskedForward(nn.Module):
    """What training with a mask means: the model computes with `weight * mask`, and gradients pass through that."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        changed = {
            f"{name}.weight": self.model.get_submodule(name).weight * mask for name, mask in masks(self.model).items()
        }
        return torch.func.functional_call(self.model, changed, (x,))


@EVERY_OPTIMIZER
def test_the_pattern_holds_after_every_step_and_kept_weights_move_as_with_a_mask_in_the_model(
    make: MakeOptimizer,
) -> None:
    model = masked()
    truth = MaskedForward(copy.deepcopy(model))
    optimizer, reference = make(model.parameters()), make(truth.parameters())
    keep_masks_(model, optimizer)
    before = counted(model)
    for x, y in data(6):
        for network, steps in ((model, optimizer), (truth, reference)):
            steps.zero_grad()
            F.mse_loss(network(x), y).backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            assert float(norm) > 0.1
            steps.step()
        assert obeys(model)
    assert counted(model) == before
    for ours, theirs in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@EVERY_OPTIMIZER
def test_accumulated_gradients_are_those_of_the_whole_batch(make: MakeOptimizer) -> None:
    whole, parts = masked(), masked()
    first, second = make(whole.parameters()), make(parts.parameters())
    keep_masks_(whole, first)
    keep_masks_(parts, second)
    for x, y in data(3):
        F.mse_loss(whole(x), y).backward()
        for some, goal in zip(x.split(2), y.split(2), strict=True):
            (F.mse_loss(parts(some), goal) / 4).backward()
        for weight in masked_weights(parts):
            assert weight.parameter.grad is not None
            assert not weight.parameter.grad[weight.dropped].any()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
        assert obeys(parts)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        # Adam divides by the gradient's size: where that is near zero, the last bits decide.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_with_a_gradient_scaler_keeps_the_pattern(make: MakeOptimizer, dtype: torch.dtype) -> None:
    model = masked()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    keep_masks_(model, optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for number, (x, y) in enumerate(data(4)):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = F.mse_loss(model(x), y)
        if number == 2:
            loss = loss * float("inf")  # the scaler must find it and skip the step
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert obeys(model)
    assert scaler.get_scale() < 2.0**10
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, old)


@EVERY_OPTIMIZER
def test_a_run_that_is_saved_and_resumed_ends_with_the_same_bits(make: MakeOptimizer) -> None:
    def train(model: nn.Module, optimizer: Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in batches:
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            assert obeys(model)

    straight = masked()
    optimizer = make(straight.parameters())
    keys = list(straight.state_dict())
    keep_masks_(straight, optimizer)
    assert list(straight.state_dict()) == keys
    train(straight, optimizer, data(3))
    stream = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    train(straight, optimizer, data(6)[3:])

    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    torch.manual_seed(5)
    resumed = Small()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.normal_()
    masked(resumed)
    again = make(resumed.parameters())
    keep_masks_(resumed, again)
    # Other masks than those of the fresh model: what was loaded counts.
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, data(6)[3:])
    for (name, ours), theirs in zip(resumed.named_parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_moments_from_before_the_mask_do_not_move_dropped_weights() -> None:
    model = Small()
    optimizer = AdamW(model.parameters(), lr=0.01)
    (x, y), *later = data(3)
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    masked(model)
    dense_state = copy.deepcopy(optimizer.state_dict())
    keep_masks_(model, optimizer)
    optimizer.load_state_dict(dense_state)
    for weight in masked_weights(model):
        for key in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[weight.parameter][key]
            assert not moment[weight.dropped].any()
            assert moment.any()
    for x, y in later:
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        assert obeys(model)


def test_a_kept_zero_may_move_and_a_dropped_gradient_of_nan_may_not_spread() -> None:
    layer = nn.Linear(4, 4, bias=False)
    layer.register_buffer("weight_mask", torch.eye(4, dtype=torch.bool))
    with torch.no_grad():
        layer.weight.zero_()
    optimizer = SGD(layer.parameters(), lr=1.0)
    keep_masks_(layer, optimizer)
    gradient = torch.full((4, 4), float("nan"))
    gradient.fill_diagonal_(1.0)
    layer.weight.backward(gradient)
    optimizer.step()
    assert torch.equal(layer.weight, -torch.eye(4))
    assert not torch.signbit(layer.weight.detach() + torch.eye(4)).any()


def test_a_new_mask_counts_from_then_on() -> None:
    model = masked()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    keep_masks_(model, optimizer)
    (x, y), (x2, y2) = data(2)
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    sparsify_(model, {"first": "1:4"})
    F.mse_loss(model(x2), y2).backward()
    optimizer.step()
    assert int(masks(model)["first"].sum()) == 64 * 48 // 4
    assert obeys(model)


def test_a_removed_handle_and_a_left_block_let_weights_go() -> None:
    for leave in ("remove", "with"):
        model = masked()
        optimizer = SGD(model.parameters(), lr=0.1)
        (x, y), (x2, y2) = data(2)
        with keep_masks_(model, optimizer) as kept:
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            assert obeys(model)
            if leave == "remove":
                kept.remove()
                F.mse_loss(model(x2), y2).backward()
                optimizer.step()
                assert not obeys(model)
        F.mse_loss(model(x2), y2).backward()
        optimizer.step()
        assert not obeys(model)


def test_a_copy_of_the_model_is_free_until_it_is_kept_itself() -> None:
    model = masked()
    optimizer = SGD(model.parameters(), lr=0.1)
    keep_masks_(model, optimizer)
    copied = copy.deepcopy(model)
    assert list(copied.state_dict()) == list(model.state_dict())
    own = SGD(copied.parameters(), lr=0.1)
    keep_masks_(copied, own)
    for x, y in data(2):
        own.zero_grad()
        F.mse_loss(copied(x), y).backward()
        own.step()
    assert obeys(copied)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_in_bfloat16_and_float64_keep_their_pattern() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model = masked().to(dtype)
        optimizer = AdamW(model.parameters(), lr=0.01)
        keep_masks_(model, optimizer)
        for x, y in data(2):
            F.mse_loss(model(x.to(dtype)), y.to(dtype)).backward()
            optimizer.step()
            assert obeys(model)


def test_a_transposed_layer_and_a_tied_weight_obey_the_masks_of_all_that_hold_them() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    turned = Conv1D(16, 8)
    turned.register_buffer("weight_mask", torch.rand(16, 8) < 0.5)  # in the (out, in) form
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    first.register_buffer("weight_mask", torch.rand(8, 8) < 0.7)
    second.register_buffer("weight_mask", torch.rand(8, 8) < 0.7)
    model = nn.Sequential(first, second, turned)
    optimizer = AdamW(model.parameters(), lr=0.1)
    kept = keep_masks_(model, optimizer)
    assert [weight.name for weight in kept.weights] == ["0.weight", "2.weight"]
    for _ in range(2):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    allowed = first.weight_mask & second.weight_mask
    assert not first.weight.detach()[~allowed].any()
    assert first.weight.detach()[allowed].all()
    assert not turned.weight.detach()[~turned.weight_mask.T].any()


def test_frozen_masked_weights_are_left_alone() -> None:
    model = masked()
    model.first.weight.requires_grad_(False)
    before = model.first.weight.clone()
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    kept = keep_masks_(model, optimizer)
    assert [weight.name for weight in kept.weights] == ["conv.weight", "second.weight"]
    x, y = data(1)[0]
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    assert torch.equal(model.first.weight, before)


def test_what_cannot_be_kept_is_told_in_one_sentence() -> None:
    with pytest.raises(ModelError, match="Call sparsify_ first"):
        keep_masks_(Small(), SGD(Small().parameters(), lr=0.1))
    model = masked()
    with pytest.raises(ModelError, match="none of the 3 masked weights"):
        keep_masks_(model, SGD(copy.deepcopy(model).parameters(), lr=0.1))
    optimizer = SGD(model.parameters(), lr=0.1)
    keep_masks_(model, optimizer)
    x, y = data(1)[0]
    loss = F.mse_loss(model(x), y)
    del model.first._buffers["weight_mask"]
    with pytest.raises(ModelError, match=r"mask of first\.weight is gone"):
        loss.backward()


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_eager_one() -> None:
    eager, compiled_from = masked(), masked()
    compiled = torch.compile(compiled_from, fullgraph=True)
    runs = ((eager, eager), (compiled, compiled_from))
    optimizers = [AdamW(owner.parameters(), lr=0.01) for _, owner in runs]
    for (_, owner), optimizer in zip(runs, optimizers, strict=True):
        keep_masks_(owner, optimizer)
    for x, y in data(3):
        for (network, owner), optimizer in zip(runs, optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(network(x), y).backward()
            optimizer.step()
            assert obeys(owner)
    for ours, theirs in zip(compiled_from.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
