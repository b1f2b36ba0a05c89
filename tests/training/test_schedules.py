"""What each mask schedule does, compared with its paper's own description on plain tensors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from sparsewright import parse_pattern, solve_mask, sparsify_
from sparsewright.core import ModelError, PatternError, RecipeError
from sparsewright.training import (
    AbstractSchedule,
    Fixed,
    Gradual,
    MaskChange,
    RigL,
    SparseEvolutionary,
    SparseRefined,
    Timing,
    exchange,
    schedules,
    sparse_training_,
)
from sparsewright.training.schedules import Prices
from sparsewright.training.schedules.chain import on_the_way

EVERY_PATTERN = ("2:4", "1:4x4", "2:4t", "3:8t", "3:6:4", "10%", "4x1@50%", "4x4@25%")


def change(pattern: str, mask: Tensor | None = None, **changed: Any) -> MaskChange:
    """A layer of 24 x 32, its mask solved unless it is given."""
    rule = parse_pattern(pattern)
    shape = (24, 32) if mask is None else tuple(mask.shape)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kept = solve_mask(weight.abs(), rule) if mask is None else mask
    fields: dict[str, Any] = {
        "name": "layer",
        "weight": weight * kept,
        "mask": kept,
        "pattern": rule,
        "gradient": None,
        "step": 0,
        "timing": Timing(0, 1, 10),
        "random": np.random.default_rng(0),
        "prices": Prices(),
    }
    return MaskChange(**{**fields, **changed})


def linear(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(32, 24, bias=bias)


def batch(step: int) -> Tensor:
    return torch.randn(16, 32, generator=torch.Generator().manual_seed(step))


def step_of(layer: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    layer(batch(step)).sin().square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("pattern", EVERY_PATTERN)
@pytest.mark.parametrize("fraction", [0.05, 0.3, 1.0])
def test_an_exchange_keeps_the_pattern_and_comes_as_near_to_its_fraction_as_any_bonus_does(
    pattern: str, fraction: float
) -> None:
    before = change(pattern)
    growth = torch.rand(24, 32, generator=torch.Generator().manual_seed(1))
    found = exchange(before, growth, fraction)
    assert before.pattern.check_mask(found) == []
    kept = int(before.mask.sum())
    assert int(found.sum()) == kept
    wanted, gone = fraction * kept, int((before.mask & ~found).sum())
    if pattern in ("2:4", "2:4t", "3:8t"):
        room = min(kept, int((~before.mask).sum()))
        assert abs(gone - min(wanted, room)) <= max(2, 0.1 * kept)
    # Whole units move: four rows, or a block of 16.
    smallest = {"1:4x4": 4, "4x1@50%": 4, "4x4@25%": 16, "10%": 1, "2:4": 1}.get(pattern)
    if smallest is not None and fraction < 1:
        assert abs(gone - wanted) <= max(smallest, wanted / 200 + 1)


def test_without_a_pattern_the_smallest_go_and_the_largest_growth_comes() -> None:
    before = change("25%")
    growth = torch.rand(24, 32, generator=torch.Generator().manual_seed(1))
    found = exchange(before, growth, 0.5)
    count = int((before.mask & ~found).sum())
    assert count == round(0.5 * int(before.mask.sum()))
    weight = before.weight.abs().masked_fill(~before.mask, math.inf).flatten()
    gone = torch.zeros(24 * 32, dtype=torch.bool)
    gone[weight.argsort()[:count]] = True
    come = torch.zeros(24 * 32, dtype=torch.bool)
    come[growth.masked_fill(before.mask, -1).flatten().argsort(descending=True)[:count]] = True
    assert torch.equal(found.flatten(), (before.mask.flatten() & ~gone) | come)


def test_of_two_equal_groups_the_one_that_gains_more_changes() -> None:
    mask = torch.tensor([[True, False, False, False, True, False, False, False]]).repeat(1, 1)
    weight = torch.tensor([[1.0, 0, 0, 0, 2.0, 0, 0, 0]])
    growth = torch.tensor([[0, 9.0, 1.0, 2.0, 0, 8.0, 3.0, 4.0]])
    before = change("1:4", mask, weight=weight)
    found = exchange(before, growth, 0.5)
    assert found.tolist() == [[False, True, False, False, True, False, False, False]]


def test_rigl_grows_by_the_dense_gradient_of_the_whole_step_and_by_a_cosine() -> None:
    layer = linear()
    optimizer = SGD(layer.parameters(), lr=0.01)
    training = sparse_training_(layer, optimizer, {"": "25%"}, schedule=RigL(fraction=0.4), every=2, end=8)
    for step in range(10):
        before = training.layers[""].mask.clone()
        optimizer.zero_grad()
        dense = torch.zeros(24, 32)
        for part in batch(step).split(4):  # accumulated
            twin = layer.weight.detach().clone().requires_grad_()
            F.linear(part, twin).sin().square().sum().backward()
            dense += twin.grad
            layer(part).sin().square().sum().backward()
        optimizer.step()
        after = training.layers[""].mask
        gone, come = before & ~after, after & ~before
        done = step + 1
        share = 0.2 * (1 + math.cos(math.pi * done / 8)) if done % 2 == 0 and done <= 8 else 0.0
        assert int(gone.sum()) == round(share * int(before.sum()))
        if bool(come.any()):
            assert dense.abs()[come].min() >= dense.abs()[~before & ~come].max() - 1e-4
            assert not layer.weight.detach()[come].any()


def test_set_draws_other_places_for_another_seed() -> None:
    masks = []
    for seed in (0, 0, 1):
        layer = linear()
        optimizer = SGD(layer.parameters(), lr=0.0)
        training = sparse_training_(
            layer, optimizer, {"": "2:4t"}, schedule=SparseEvolutionary(0.5), every=1, total=4, seed=seed
        )
        step_of(layer, optimizer, 0)
        masks.append(training.layers[""].mask.clone())
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("pattern", ["2:4", "2:4t"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sr_ste_is_a_straight_through_mask_with_decay_of_the_dropped_weights(pattern: str, momentum: float) -> None:
    class Refined(torch.autograd.Function):
        """The paper's own form: a function whose gradient passes through and adds the decay."""

        @staticmethod
        def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
            ctx.save_for_backward(weight, mask)
            return weight * mask

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            weight, mask = ctx.saved_tensors
            return grad + 0.1 * ~mask * weight, None

    layer = linear()
    weight = nn.Parameter(layer.weight.detach().clone())
    ours = SGD(layer.parameters(), lr=0.01, momentum=momentum, weight_decay=0.01)
    theirs = SGD([weight], lr=0.01, momentum=momentum, weight_decay=0.01)
    training = sparse_training_(layer, ours, {"": pattern}, schedule=SparseRefined(0.1), total=12)
    for step in range(12):
        mask = solve_mask(weight.detach().abs(), pattern)
        assert torch.equal(layer.weight_mask, mask)
        torch.testing.assert_close(layer.weight.detach(), weight.detach() * mask, rtol=1e-5, atol=1e-6)
        theirs.zero_grad()
        F.linear(batch(step), Refined.apply(weight, mask)).sin().square().sum().backward()
        theirs.step()
        step_of(layer, ours, step)
    hidden = training.state_dict()["hidden"]["weight"]
    torch.testing.assert_close(hidden + layer.weight.detach(), weight.detach(), rtol=1e-5, atol=1e-6)
    assert hidden.any()


def test_periodic_lets_a_dropped_weight_come_back_with_the_value_it_has_by_then() -> None:
    layer = linear()
    optimizer = SGD(layer.parameters(), lr=0.05)
    training = sparse_training_(layer, optimizer, {"": "1:4"}, schedule="periodic", every=3, total=100)
    step_of(layer, optimizer, 0)
    step_of(layer, optimizer, 1)
    before = training.layers[""].mask.clone()
    optimizer.zero_grad()
    layer(batch(2)).sin().square().sum().backward()
    expected = layer.weight.detach() + training.state_dict()["hidden"]["weight"] - 0.05 * layer.weight.grad
    optimizer.step()
    come = training.layers[""].mask & ~before
    assert come.any()
    torch.testing.assert_close(layer.weight.detach()[come], expected[come])


def test_periodic_transposable_masks_are_optimal_from_warm_prices_too() -> None:
    layer = linear()
    optimizer = SGD(layer.parameters(), lr=0.05)
    training = sparse_training_(layer, optimizer, {"": "2:4t"}, schedule="periodic", every=1, total=100)
    first = training.state_dict()["prices"][""]
    for step in range(4):
        step_of(layer, optimizer, step)
        scores = (layer.weight.detach() + training.state_dict()["hidden"]["weight"]).abs().double()
        best = float(scores[solve_mask(scores, "2:4t")].sum())
        assert float(scores[training.layers[""].mask].sum()) == pytest.approx(best, rel=1e-12)
    assert not torch.equal(training.state_dict()["prices"][""], first)


def test_gradual_follows_the_cubic_and_reaches_its_density_at_the_end() -> None:
    layer = linear()
    optimizer = SGD(layer.parameters(), lr=0.01)
    training = sparse_training_(layer, optimizer, {"": "10%"}, schedule="gradual", begin=2, every=2, end=12)
    for step in range(14):
        step_of(layer, optimizer, step)
        done = min(12, (step + 1) // 2 * 2)
        wanted = 0.1 + 0.9 * (1 - max(0, done - 2) / 10) ** 3
        assert training.density == pytest.approx(wanted, abs=1 / (24 * 32)), step
    assert training.density == pytest.approx(0.1, abs=1 / (24 * 32))


@pytest.mark.parametrize("pattern", [text for text in EVERY_PATTERN if text != "3:6:4"])
def test_gradual_masks_are_nested(pattern: str) -> None:
    layer = linear()
    optimizer = SGD(layer.parameters(), lr=0.01)
    training = sparse_training_(layer, optimizer, {"": pattern}, schedule="gradual", every=1, end=10)
    before = training.layers[""].mask.clone()
    sizes = {int(before.sum())}
    for step in range(10):
        step_of(layer, optimizer, step)
        after = training.layers[""].mask
        assert not (after & ~before).any()
        before = after.clone()
        sizes.add(int(after.sum()))
    assert len(sizes) >= 3
    assert training.layers[""].pattern.check_mask(before) == []


def test_free_transposable_masks_take_back_what_the_pattern_has_better_use_for() -> None:
    # The three largest leave row 0 and column 0 to each other, and that place has been dropped.
    kept = ~torch.eye(4, dtype=torch.bool)
    weight = torch.ones(4, 4) * kept
    weight[1, 2] = weight[2, 3] = weight[3, 1] = 100.0
    before = change("1:4t", kept, weight=weight)
    nested, free = (Gradual(nested=value).choose(before) for value in (True, False))
    assert not (nested & ~kept).any()
    assert float(weight[nested].sum()) == 202
    assert bool(free[0, 0])
    assert float(weight[free].sum()) == 300


def test_the_chain_goes_through_every_pattern_of_its_kind() -> None:
    assert [str(on_the_way(parse_pattern("1:4t"), density)) for density in (1.0, 0.8, 0.5, 0.3, 0.2)] == [
        "dense",
        "3:4t",
        "2:4t",
        "1:4t",
        "1:4t",
    ]
    assert str(on_the_way(parse_pattern("2:4x16"), 0.7)) == "3:4x16"
    assert str(on_the_way(parse_pattern("10%"), 0.25)) == "25%"
    assert str(on_the_way(parse_pattern("4x1@25%"), 0.5)) == "4x1@50%"
    # 8:16 has 12,870 choices, more than n:m:g may have: the nearest that there is.
    assert str(on_the_way(parse_pattern("2:16:1"), 0.4)) == "3:16:1"


def test_one_shot_changes_once_and_not_again() -> None:
    layer = linear()
    optimizer = SGD(layer.parameters(), lr=0.05)
    training = sparse_training_(layer, optimizer, {"": "1:4"}, schedule="one_shot", begin=2)
    densities = []
    for step in range(4):
        weight = layer.weight.detach().clone()
        step_of(layer, optimizer, step)
        densities.append(training.density)
        if step == 1:
            assert not torch.equal(layer.weight_mask, solve_mask(weight.abs(), "1:4"))
            kept = layer.weight_mask.clone()
    assert densities == [1, 0.25, 0.25, 0.25]
    assert torch.equal(kept, layer.weight_mask)


def test_masks_that_obey_already_are_where_a_training_starts() -> None:
    layer = linear()
    random = solve_mask(torch.rand(24, 32), "2:4")
    layer.register_buffer("weight_mask", random.clone())
    training = sparse_training_(layer, SGD(layer.parameters(), lr=0.1), {"": "2:4"}, schedule="rigl", total=10)
    assert torch.equal(training.layers[""].mask, random)


def test_without_a_pattern_the_masks_that_are_there_decide() -> None:
    model = nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 32))
    sparsify_(model, {"0": "2:4t"})
    training = sparse_training_(model, SGD(model.parameters(), lr=0.1), schedule="set", every=1, total=10)
    assert {name: str(layer.pattern) for name, layer in training.layers.items()} == {"0": "2:4t"}


def test_fixed_needs_masks() -> None:
    layer = linear()
    with pytest.raises(ModelError, match="Call sparsify_ first, or take the schedule 'one_shot'"):
        sparse_training_(layer, SGD(layer.parameters(), lr=0.1), {"": "2:4"}, schedule=Fixed())
    assert "weight_mask" not in layer._buffers
    with pytest.raises(ModelError, match="no pattern was given"):
        sparse_training_(layer, SGD(layer.parameters(), lr=0.1), schedule="fixed")


@pytest.mark.parametrize("name", ["gradual", "rigl"])
def test_a_schedule_that_needs_an_end_says_so(name: str) -> None:
    layer = linear()
    with pytest.raises(RecipeError, match="Give total= or end="):
        sparse_training_(layer, SGD(layer.parameters(), lr=0.1), {"": "2:4"}, schedule=name)


@pytest.mark.parametrize(
    "options", [{"begin": -1}, {"every": 0}, {"total": 0}, {"begin": 5, "end": 4}, {"every": 1.5}, {"seed": -1}]
)
def test_steps_out_of_range_are_refused(options: dict[str, Any]) -> None:
    layer = linear()
    with pytest.raises(RecipeError, match=r"at least|whole number"):
        sparse_training_(layer, SGD(layer.parameters(), lr=0.1), {"": "2:4"}, schedule="periodic", **options)


@pytest.mark.parametrize("make", [lambda: RigL(1.5), lambda: SparseEvolutionary(-0.1), lambda: SparseRefined(-1.0)])
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(RecipeError, match="got"):
        make()


def test_a_mask_that_breaks_its_pattern_is_refused_by_name() -> None:
    class Everything(AbstractSchedule):
        def choose(self, change: MaskChange) -> Tensor:
            return torch.ones_like(change.mask)

    layer = linear()
    optimizer = SGD(layer.parameters(), lr=0.1)
    sparse_training_(layer, optimizer, {"": "2:4"}, schedule=Everything(), every=1, total=4)
    with pytest.raises(PatternError, match="The schedule Everything chose a mask"):
        step_of(layer, optimizer, 0)


def test_every_schedule_is_found_by_its_name() -> None:
    expected = {"fixed", "gradual", "one_shot", "periodic", "rigl", "set", "sr_ste"}
    assert expected <= set(schedules.names())
