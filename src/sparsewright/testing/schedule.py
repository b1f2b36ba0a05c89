"""Laws that every mask schedule obeys, ours and those of plug-ins."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

from ..core import parse_pattern
from ..models import MASK, sparsify_
from ..training import AbstractSchedule, SparseTraining, sparse_training_

# One of every form; tiles and groups that the small layers below fit.
PATTERNS = ("2:4", "1:4x4", "2:4t", "3:8t", "3:6:4", "10%", "4x1@50%", "4x4@25%")
STEPS, EVERY, TOTAL = 9, 2, 8


class ScheduleContract:
    """Subclass it and define the fixture `schedule`."""

    @pytest.fixture(params=PATTERNS)
    def pattern(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_after_every_step_masks_obey_the_pattern_of_that_step_and_what_they_drop_is_zero(
        self, schedule: AbstractSchedule, pattern: str
    ) -> None:
        model, optimizer, training = begun(schedule, pattern)
        for step in range(STEPS):
            train_step(model, optimizer, step)
            assert training.step == step + 1
            for name, layer in training.layers.items():
                rule = schedule.pattern(layer.pattern, training.step, training.timing)
                assert rule.check_mask(layer.mask) == [], f"{name}, step {step}"
                assert not layer.parameter.detach().flatten(1)[~layer.mask].any(), f"{name}, step {step}"
                assert layer.ref.module.weight_pattern == str(rule)

    def test_at_the_end_masks_obey_what_was_asked_for_also_where_it_came_early(
        self, schedule: AbstractSchedule, pattern: str
    ) -> None:
        for steps in (1, STEPS):
            model, optimizer, training = begun(schedule, pattern)
            for step in range(steps):
                train_step(model, optimizer, step)
            training.finish()
            before = copy.deepcopy(model.state_dict())
            for module in (model[0], model[2]):
                mask = module._buffers[MASK]
                assert parse_pattern(pattern).check_mask(mask) == []
                assert not module.weight.detach()[~mask].any()
            training.finish()
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_a_resumed_training_ends_with_the_same_bits(self, schedule: AbstractSchedule, pattern: str) -> None:
        straight, optimizer, training = begun(schedule, pattern)
        for step in range(5):
            train_step(straight, optimizer, step)
        stream = io.BytesIO()
        torch.save([straight.state_dict(), optimizer.state_dict(), training.state_dict()], stream)
        for step in range(5, STEPS):
            train_step(straight, optimizer, step)
        training.finish()

        stream.seek(0)
        weights, moments, state = torch.load(stream, weights_only=True)
        resumed, optimizer, training = begun(schedule, pattern, seed=1)
        resumed.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        training.load_state_dict(state)
        for step in range(5, STEPS):
            train_step(resumed, optimizer, step)
        training.finish()
        for name, value in resumed.state_dict().items():
            assert torch.equal(value, straight.state_dict()[name]), name

    def test_masks_are_the_same_for_the_same_seed(self, schedule: AbstractSchedule) -> None:
        states = []
        for _ in range(2):
            model, optimizer, _ = begun(schedule, "2:4t")
            for step in range(STEPS):
                train_step(model, optimizer, step)
            states.append(model.state_dict())
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    def test_weights_grow_from_zero_moments_unless_they_were_alive(self, schedule: AbstractSchedule) -> None:
        model, optimizer, training = begun(schedule, "10%")
        for step in range(STEPS):
            train_step(model, optimizer, step)
            for layer in training.layers.values():
                for key in ("exp_avg", "exp_avg_sq"):
                    behind = optimizer.state[layer.parameter][key][~layer.mask]
                    assert schedule.live or not behind.any(), f"step {step}"

    def test_before_begin_nothing_is_dropped_unless_masks_are_there_to_stay(self, schedule: AbstractSchedule) -> None:
        if schedule.needs_masks:
            pytest.skip("it keeps masks that are there before anything begins")
        model = small(0)
        optimizer = SGD(model.parameters(), lr=0.1)
        training = sparse_training_(model, optimizer, "1:4", schedule=schedule, begin=2, every=1, end=4)
        assert training.density == 1
        train_step(model, optimizer, 0)
        assert training.density == 1
        for step in range(1, 6):
            train_step(model, optimizer, step)
        assert training.density == 0.25


def small(seed: int) -> nn.Sequential:
    """Two linear layers under a mask, a third that is not."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 32), nn.Linear(32, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def begun(schedule: AbstractSchedule, pattern: str, seed: int = 0) -> tuple[Any, Optimizer, SparseTraining]:
    """A model of small layers, its optimiser, and the schedule at work on it."""
    model = small(seed)
    if schedule.needs_masks:
        sparsify_(model, {"0": pattern, "2": pattern})
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    rules = {"0": pattern, "2": pattern}
    return model, optimizer, sparse_training_(model, optimizer, rules, schedule=schedule, every=EVERY, total=TOTAL)


def train_step(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """One step on a batch that depends on its number only."""
    generator = torch.Generator().manual_seed(100 + step)
    x: Tensor = torch.randn(16, 32, generator=generator)
    optimizer.zero_grad()
    functional.mse_loss(model(x), x[:, :4].sin()).backward()
    optimizer.step()
