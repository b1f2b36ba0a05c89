"""Laws of reconstruction: the least-squares optimum on the kept places, errors never grow, masks never move."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsewright.core import ModelError
from sparsewright.training import reconstruct
from sparsewright.training.reconstruct import conjugate_gradients


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, hidden):
        return hidden + self.out(torch.tanh(self.query(hidden)) * self.key(hidden))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(60, 16)
        self.layers = nn.ModuleList([Layer(16) for _ in range(3)])

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(last_hidden_state=hidden)


def make_batches():
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 60, (16, 6), generator=generator) for _ in range(6)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def halve(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "layers" in name:
            kept = module.weight.detach().abs() >= module.weight.detach().abs().median()
            module.weight.data.mul_(kept)
            module.register_buffer("weight_mask", kept)
    return model


def distance(model, teacher):
    with torch.no_grad():
        pairs = [(model(**batch).last_hidden_state, teacher(**batch).last_hidden_state) for batch in make_batches()]
    return sum(float((ours - theirs).square().mean()) for ours, theirs in pairs)


def test_conjugate_gradients_find_the_exact_optimum_of_every_row():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 12, dtype=torch.float64, generator=generator)
    target = torch.randn(200, 5, dtype=torch.float64, generator=generator)
    mask = torch.rand(5, 12, generator=generator) < 0.5
    gram, right = inputs.T @ inputs / 200, target.T @ inputs / 200
    found = conjugate_gradients(torch.zeros(5, 12, dtype=torch.float64), mask, gram, right, 0.0, 60)
    for row in range(5):
        columns = mask[row].nonzero().flatten()
        exact = torch.linalg.lstsq(inputs[:, columns], target[:, row : row + 1]).solution.flatten()
        torch.testing.assert_close(found[row, columns], exact, rtol=1e-8, atol=1e-10)
        assert not found[row, ~mask[row]].any()


def test_a_row_with_nothing_kept_stays_zero():
    mask = torch.zeros(2, 4, dtype=torch.bool)
    found = conjugate_gradients(
        torch.ones(2, 4).double(), mask, torch.eye(4).double(), torch.ones(2, 4).double(), 0.1, 5
    )
    assert not found.any()


def test_the_model_comes_nearer_to_its_teacher_with_the_same_masks():
    teacher = Stack()
    model = halve(copy.deepcopy(teacher))
    masks = {name: value.clone() for name, value in model.named_buffers()}
    before = distance(model, teacher)
    fits = reconstruct(model, teacher, make_batches())
    assert [fit.name for fit in fits] == [f"layers.{i}.{part}" for i in range(3) for part in ("query", "key", "out")]
    assert all(fit.error_after <= fit.error_before for fit in fits)
    assert distance(model, teacher) < 0.8 * before
    for name, value in model.named_buffers():
        assert torch.equal(value, masks[name])
        assert not model.get_parameter(name.removesuffix("_mask"))[~value].any()
    assert distance(teacher, Stack()) == 0.0


def test_the_same_data_give_the_same_bits():
    teacher = Stack()
    first, second = halve(copy.deepcopy(teacher)), halve(copy.deepcopy(teacher))
    reconstruct(first, teacher, make_batches())
    reconstruct(second, teacher, make_batches())
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_full_mask_on_the_dense_weights_changes_nothing():
    teacher = Stack()
    model = copy.deepcopy(teacher)
    for layer in model.layers:
        layer.query.register_buffer("weight_mask", torch.ones(16, 16, dtype=torch.bool))
    fits = reconstruct(model, teacher, make_batches())
    assert all(fit.error_before < 1e-10 for fit in fits)
    torch.testing.assert_close(model.layers[2].query.weight, teacher.layers[2].query.weight, rtol=1e-4, atol=1e-5)


def test_a_teacher_of_another_shape_is_refused():
    model = halve(Stack())
    with pytest.raises(ModelError, match=r"layers\.0\.query"):
        reconstruct(model, nn.Linear(4, 4), make_batches())


def test_a_model_without_blocks_is_left_alone():
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].register_buffer("weight_mask", torch.ones(16, 16, dtype=torch.bool))
    assert reconstruct(model, copy.deepcopy(model), [torch.randn(4, 16)]) == []
