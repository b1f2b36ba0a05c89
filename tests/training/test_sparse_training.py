"""Laws of `sparse_training_`: whatever the loop does, steps are counted once, dropped weights stay at zero, and the
model keeps its names."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from sparsewright import keep_masks_, load, pack_, save, sparsify_, train_packed_
from sparsewright.core import DataError, ModelError, NumericError
from sparsewright.nn import SparseTensor
from sparsewright.training import RigL, SparseTraining, sparse_training_

MakeOptimizer = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False),
    "sgd foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
}
EVERY_OPTIMIZER = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
MOVING = pytest.mark.parametrize("schedule", ["gradual", "sr_ste", "rigl"])
RULES = {"conv": "25%", "first": "2:4t", "second": "1:4x4"}


class Small(nn.Module):
    """A convolution, two linears, a norm."""

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


def data(steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, 8, 8, generator=generator), torch.randn(8, 64, generator=generator)) for _ in range(steps)
    ]


def begun(make: MakeOptimizer, schedule: Any, model: nn.Module | None = None) -> tuple[Any, Optimizer, SparseTraining]:
    model = Small() if model is None else model
    optimizer = make(model.parameters())
    return model, optimizer, sparse_training_(model, optimizer, RULES, schedule=schedule, every=2, total=8)


def obeys(training: SparseTraining) -> bool:
    return all(not layer.parameter.detach().flatten(1)[~layer.mask].any() for layer in training.layers.values())


def plain_step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()


@MOVING
@EVERY_OPTIMIZER
def test_masks_move_weights_obey_and_gradients_of_dropped_weights_reach_no_moment(
    make: MakeOptimizer, schedule: str
) -> None:
    model, optimizer, training = begun(make, schedule)
    keys = list(model.state_dict())
    before = {name: layer.mask.clone() for name, layer in training.layers.items()}
    for x, y in data(8):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert obeys(training)
    assert any(not torch.equal(layer.mask, before[name]) for name, layer in training.layers.items())
    training.finish()
    assert list(model.state_dict()) == keys
    for name, layer in training.layers.items():
        assert layer.pattern.check_mask(layer.mask) == []
        assert str(layer.pattern) == RULES[name]


@MOVING
def test_accumulated_gradients_count_as_one_step_and_give_the_same_masks(schedule: str) -> None:
    whole, first, _ = begun(OPTIMIZERS["sgd"], schedule)
    parts, second, training = begun(OPTIMIZERS["sgd"], schedule)
    for number, (x, y) in enumerate(data(8)):
        plain_step(whole, first, x, y)
        second.zero_grad()
        for some, goal in zip(x.split(2), y.split(2), strict=True):
            (F.mse_loss(parts(some), goal) / 4).backward()
        second.step()
        assert training.step == number + 1
    for name, value in parts.state_dict().items():
        if name.endswith("weight_mask"):
            assert torch.equal(value, whole.state_dict()[name]), name
        else:
            torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-3, atol=1e-5)


@MOVING
@EVERY_OPTIMIZER
@pytest.mark.parametrize("unscale", [True, False])
def test_steps_that_a_gradient_scaler_skips_do_not_count(make: MakeOptimizer, schedule: str, unscale: bool) -> None:
    plain, alone, _ = begun(make, schedule)
    scaled, optimizer, training = begun(make, schedule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6)
    for number, (x, y) in enumerate(data(8)):
        plain_step(plain, alone, x, y)
        for overflow in (True, False) if number in (1, 4) else (False,):
            optimizer.zero_grad()
            loss = F.mse_loss(scaled(x), y)
            scaler.scale(loss * float("inf") if overflow else loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            assert obeys(training)
        assert training.step == number + 1
    assert scaler.get_scale() == 2.0**4
    for name, value in scaled.state_dict().items():
        if name.endswith("weight_mask"):
            assert torch.equal(value, plain.state_dict()[name]), name
        else:
            # Scales are powers of two; a fused step may round once more.
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["gradual", "periodic", "sr_ste", "set", "rigl"])
def test_a_closure_trains_as_the_plain_loop_does(schedule: str) -> None:
    plain, alone, _ = begun(OPTIMIZERS["adamw"], schedule)
    closed, optimizer, training = begun(OPTIMIZERS["adamw"], schedule)
    for number, (x, y) in enumerate(data(6)):
        plain_step(plain, alone, x, y)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            assert obeys(training)
            optimizer.zero_grad()
            loss = F.mse_loss(closed(x), y)
            loss.backward()
            return loss

        loss = optimizer.step(closure) if number % 2 else optimizer.step(closure=closure)
        assert isinstance(loss, Tensor)
    for name, value in closed.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_clipping_sees_the_kept_gradients_except_where_masks_are_about_to_change() -> None:
    model, optimizer, training = begun(OPTIMIZERS["sgd"], "rigl")
    for number, (x, y) in enumerate(data(4)):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        dense = any(bool(layer.parameter.grad.flatten(1)[~layer.mask].any()) for layer in training.layers.values())
        assert dense == (number % 2 == 1)
        optimizer.step()
        for layer in training.layers.values():
            momentum = optimizer.state[layer.parameter]["momentum_buffer"]
            assert not momentum.flatten(1)[~layer.mask].any()


def test_what_is_masked_besides_keeps_its_masks() -> None:
    for schedule in ("set", "sr_ste"):
        model = Small()
        sparsify_(model, {"first": "2:4"})
        before = model.first.weight_mask.clone()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        sparse_training_(model, optimizer, {"second": "2:4"}, schedule=schedule, every=1, total=8)
        for x, y in data(3):
            plain_step(model, optimizer, x, y)
            assert torch.equal(model.first.weight_mask, before)
            assert not model.first.weight.detach()[~before].any()
            assert not model.second.weight.detach()[~model.second.weight_mask].any()


def test_a_context_ends_with_the_pattern_or_after_an_error_without() -> None:
    model, optimizer, training = begun(OPTIMIZERS["sgd"], "gradual")
    with training:
        pass
    assert training.density < 0.5
    model, optimizer, training = begun(OPTIMIZERS["sgd"], "gradual")
    with pytest.raises(ZeroDivisionError), training:
        raise ZeroDivisionError
    assert training.density == 1
    x, y = data(1)[0]
    plain_step(model, optimizer, x, y)
    assert training.step == 0


def test_a_finished_model_is_packed_and_saved_as_any_sparsified_one(tmp_path: Any) -> None:
    model, optimizer, training = begun(OPTIMIZERS["adamw"], "gradual")
    for x, y in data(8):
        plain_step(model, optimizer, x, y)
    training.finish()
    model.eval()
    expected = model(x)
    pack_(model, force=True)
    assert isinstance(model.first.weight, SparseTensor)
    assert str(model.first.weight.packed.pattern) == "2:4t"
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    save(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(load(tmp_path / "model.safetensors", model=Small())(x), expected, rtol=1e-4, atol=1e-5)


def test_tied_weights_share_the_moving_mask() -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 32, bias=False))
    model[2].weight = model[0].weight
    optimizer = SGD(model.parameters(), lr=0.1)
    training = sparse_training_(model, optimizer, {"0": "2:4t"}, schedule="rigl", every=1, total=8)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 32, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        assert torch.equal(model[0].weight_mask, model[2].weight_mask)
        assert not model[0].weight.detach()[~model[0].weight_mask].any()
    assert training.density == 0.5


def test_layers_of_gpt2_are_seen_the_right_way_round() -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(24, 32))  # stores (in, out)
    optimizer = SGD(model.parameters(), lr=0.1)
    training = sparse_training_(model, optimizer, {"0": "1:4"}, schedule="rigl", every=1, total=8)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 32, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        assert model[0].weight_mask.shape == (32, 24)
        assert (model[0].weight_mask.T.unflatten(1, (-1, 4)).sum(-1) == 1).all()
        assert not model[0].weight.detach()[~model[0].weight_mask].any()
    assert training.density == 0.25


def test_a_state_of_another_training_is_refused() -> None:
    state = begun(OPTIMIZERS["sgd"], RigL(0.2))[2].state_dict()
    for schedule in (RigL(0.3), "set"):
        with pytest.raises(DataError, match="another sparse training"):
            begun(OPTIMIZERS["sgd"], schedule)[2].load_state_dict(state)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda state: None, "got NoneType"),
        (lambda state: {}, "is a mapping with"),
        (lambda state: {**state, "step": -5}, "got -5"),
        (lambda state: {**state, "step": "a"}, "got 'a'"),
        (lambda state: {**state, "prices": None}, "'prices' of a sparse"),
        (lambda state: {**state, "prices": {"nowhere": torch.ones(1, 1, 4)}}, "'nowhere'"),
        (lambda state: {**state, "prices": {"first": torch.ones(3, 5, 4)}}, "'first'"),
        (lambda state: {**state, "hidden": {}}, "'conv.weight'"),
        (lambda state: {**state, "hidden": {**state["hidden"], "second.weight": torch.ones(2)}}, "'second.weight'"),
    ],
)
def test_a_damaged_state_is_told_and_changes_nothing(damage: Callable[[Any], Any], told: str) -> None:
    model, optimizer, training = begun(OPTIMIZERS["sgd"], "sr_ste")
    for x, y in data(3):
        plain_step(model, optimizer, x, y)
    before = training.state_dict()
    assert before["prices"]
    with pytest.raises(DataError, match=told):
        training.load_state_dict(damage({**before, "step": 1}))
    after = training.state_dict()
    assert after["step"] == 3
    for part in ("hidden", "prices"):
        assert after[part].keys() == before[part].keys()
        assert all(torch.equal(after[part][name], values) for name, values in before[part].items())
    training.load_state_dict(before)


def test_a_layer_under_a_schedule_takes_no_second_one_until_the_first_ends() -> None:
    model, optimizer, first = begun(OPTIMIZERS["sgd"], "rigl")
    held = {name: mask.clone() for name, mask in model.state_dict().items()}
    with pytest.raises(ModelError, match="second is under one already"):
        sparse_training_(model, optimizer, {"second": "1:4"}, schedule="sr_ste")
    assert all(torch.equal(mask, held[name]) for name, mask in model.state_dict().items())
    begun(OPTIMIZERS["sgd"], "rigl", copy.deepcopy(model))  # a copy is another model
    waiting = SparseTraining(Small(), RULES, schedule="set")
    assert set(waiting.layers) == set(first.layers)
    first.remove()
    sparse_training_(model, optimizer, {"second": "1:4"}, schedule="sr_ste").remove()


@pytest.mark.parametrize("schedule", ["periodic", "sr_ste"])
def test_live_weights_refuse_optimisers_that_take_several_gradients_in_a_step(schedule: str) -> None:
    model = Small()
    with pytest.raises(ModelError, match="LBFGS runs its closure more than once"):
        begun(lambda p: torch.optim.LBFGS(p), schedule, model)
    begun(lambda p: torch.optim.LBFGS(p), "rigl", copy.deepcopy(model))

    class Twice(Optimizer):
        def step(self, closure: Any = None) -> Any:
            closure()
            return closure()

    _, optimizer, training = begun(lambda p: Twice(p, {}), schedule, model)
    (x, y), *_ = data(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    with pytest.raises(ModelError, match="Twice runs its closure more than once"):
        optimizer.step(closure)
    assert obeys(training)


def test_an_optimiser_that_does_not_train_a_layer_is_refused() -> None:
    model = Small()
    optimizer = SGD(model.second.parameters(), lr=0.1)
    with pytest.raises(ModelError, match="does not train"):
        sparse_training_(model, optimizer, RULES, schedule="set")
    training = sparse_training_(model, optimizer, {"second": "2:4"}, schedule="set")
    with pytest.raises(ModelError, match="follow an optimiser already"):
        training.attach(optimizer)


def test_a_weight_that_became_nan_is_named_when_masks_are_due() -> None:
    model, optimizer, _ = begun(OPTIMIZERS["sgd"], "rigl")
    (x, y), (again, goal) = data(2)
    plain_step(model, optimizer, x, y)
    optimizer.zero_grad()
    (F.mse_loss(model(again), goal) * float("nan")).backward()
    with pytest.raises(NumericError, match="weight of conv"):
        optimizer.step()


def test_packed_2_4t_weights_train_along_the_curve_of_the_masked_dense_ones() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    masked = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))
    sparsify_(masked, {"0": "2:4t", "2": "2:4t"})
    packed = copy.deepcopy(masked)
    pack_(packed, force=True)
    assert train_packed_(packed) == ["0.weight", "2.weight"]
    curves = []
    for model in (masked, packed):
        optimizer = AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
        if model is masked:
            keep_masks_(model, optimizer)
        generator, curve = torch.Generator().manual_seed(0), []
        for _ in range(200):
            chosen = torch.randint(len(pixels), (64,), generator=generator)
            loss = F.cross_entropy(model(pixels[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
        curves.append(torch.stack(curve))
    assert isinstance(packed[0].weight.grad, SparseTensor)
    assert float(curves[0][:10].mean()) > 2 > 0.3 > float(curves[0][-10:].mean())
    # Sums in another order, through 200 steps of an optimiser that divides by the gradient's size.
    torch.testing.assert_close(curves[1], curves[0], rtol=2e-3, atol=2e-4)


def test_the_layers_that_take_part_are_those_that_sparsify_would_choose() -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"include": ["conv"]},
        {"exclude": ["second"]},
        {"filter_fn": lambda module, name: name == "second"},
    ]
    seen = []
    for choice in choices:
        model = Small()
        training = sparse_training_(model, SGD(model.parameters(), lr=0.1), "2:4", schedule="set", **choice)
        assert list(training.layers) == list(sparsify_(Small(), "2:4", **choice).layers)
        assert all(
            ("weight_mask" in module._buffers) == (name in training.layers) for name, module in model.named_modules()
        )
        seen.append(tuple(training.layers))
    assert len(set(seen)) == 4
