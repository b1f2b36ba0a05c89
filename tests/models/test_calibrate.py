"""Calibration: the right moments, padding left out, and a model that is as it was."""

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from sparsewright.core import DataError, NumericError
from sparsewright.models import batches_of, calibrate, layer_statistics, layers, reestimate_batch_norm_


def taking_part(model: nn.Module) -> list:
    return [ref for ref in layers(model, mask_only=True) if not ref.skipped_reason]


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_moments_are_those_of_the_inputs() -> None:
    model = tiny_models.Mlp()
    torch.manual_seed(0)
    first, second = torch.randn(3, 5, 32), torch.randn(7, 32)
    stats = layer_statistics(model, [first, second], taking_part(model))["0"]
    rows = torch.cat([first.reshape(-1, 32), second]).double()
    assert stats.tokens == 22
    torch.testing.assert_close(stats.mean, rows.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.square_sum, rows.square().sum(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.gram, rows.T @ rows, rtol=1e-5, atol=1e-4)
    assert stats.gram.dtype == torch.float64


def test_norm_needs_no_gram() -> None:
    model = tiny_models.Mlp()
    assert layer_statistics(model, [torch.randn(4, 32)], taking_part(model), "norm")["0"].gram is None
    assert layer_statistics(model, [torch.randn(4, 32)], taking_part(model), "none") == {}


def test_convolution_inputs_are_unfolded_patches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1, dilation=2, padding_mode="reflect", bias=False))
    images = torch.randn(2, 8, 9, 9)
    refs = layers(model, mask_only=True)
    rows = refs[0].view.rows(images, model[0])
    output = model(images).movedim(1, -1).reshape(-1, 16)
    torch.testing.assert_close(rows @ refs[0].get_weight().T, output, rtol=1e-5, atol=1e-5)
    stats = layer_statistics(model, [images], refs)["0"]
    assert stats.tokens == rows.shape[0]


@pytest.mark.parametrize("blockwise", [False, True])
def test_padding_is_left_out(blockwise: bool) -> None:
    model = tiny_models.tiny_bert()
    short = tiny_models.token_batch(batch=1, length=5)
    ids = torch.cat([short["input_ids"], torch.zeros(1, 4, dtype=torch.long)], 1)
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 5 + [0] * 4])}
    found = []
    for batch in (short, padded):
        collected: dict = {}
        refs = taking_part(model)
        if blockwise:
            needs = dict.fromkeys([ref.name for ref in refs], "gram")
            calibrate(model, batches_of([batch]), refs, needs, lambda block, stats, into=collected: into.update(stats))
        else:
            collected = layer_statistics(model, [batch], refs)
        found.append(collected)
    for name, stats in found[0].items():
        assert found[1][name].tokens == stats.tokens == 5
        torch.testing.assert_close(found[1][name].gram, stats.gram, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("build", ["tiny_bert", "tiny_llama", "tiny_gpt2", "tiny_deit"])
def test_block_by_block_without_changes_gives_the_moments_of_one_pass(build: str) -> None:
    model = getattr(tiny_models, build)()
    torch.manual_seed(0)
    data = [torch.randn(2, 3, 32, 32)] if build == "tiny_deit" else [tiny_models.token_batch(padded=3)] * 2
    refs = taking_part(model)
    collected: dict = {}
    needs = dict.fromkeys([ref.name for ref in refs], "gram")
    calibrate(model, batches_of(data), refs, needs, lambda block, stats: collected.update(stats))
    once = layer_statistics(model, data, refs)
    assert list(collected) == [ref.name for ref in refs]
    for name, stats in once.items():
        assert collected[name].tokens == stats.tokens
        torch.testing.assert_close(collected[name].gram, stats.gram, rtol=1e-4, atol=1e-4)


def test_modes_hooks_gradients_and_cache_settings_are_restored() -> None:
    model = tiny_models.tiny_llama().train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    refs = taking_part(model)
    needs = dict.fromkeys([ref.name for ref in refs], "norm")
    calibrate(model, batches_of([tiny_models.token_batch()]), refs, needs, lambda block, stats: None)
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == 0
    assert model.config.use_cache
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_and_modes_are_restored_when_a_visit_fails() -> None:
    model = tiny_models.tiny_llama().train()
    refs = taking_part(model)

    def fail(block: object, stats: object) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        calibrate(
            model, batches_of([tiny_models.token_batch()]), refs, dict.fromkeys([r.name for r in refs], "norm"), fail
        )
    assert hooks_of(model) == 0
    assert all(module.training for module in model.modules())
    assert model.config.use_cache


def test_a_bad_input_names_the_layer() -> None:
    model = tiny_models.Mlp()
    bad = torch.randn(4, 32)
    bad[2, 7] = float("nan")
    with pytest.raises(NumericError, match=r"of 0 in calibration.*\[2, 7\]"):
        layer_statistics(model, [bad], taking_part(model))


def test_a_layer_that_data_never_reach_is_an_error() -> None:
    model = tiny_models.Mlp()
    model.unused = nn.Linear(32, 32)
    model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="never reached 2 and 1 more"):
        layer_statistics(model, [torch.randn(2, 32)], taking_part(model))


class Twice(nn.Module):
    """Runs its one block twice, as models that share layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([tiny_models.Mlp(), tiny_models.Mlp()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](self.blocks[0](x)))


def test_a_block_that_runs_twice_is_calibrated_on_both_runs() -> None:
    model = Twice()
    refs = taking_part(model)
    collected: dict = {}
    calibrate(
        model,
        batches_of([torch.randn(3, 32)]),
        refs,
        dict.fromkeys([r.name for r in refs], "norm"),
        lambda b, s: collected.update(s),
    )
    assert collected["blocks.0.0"].tokens == 6
    assert collected["blocks.1.0"].tokens == 3


def test_batch_norm_moments_are_taken_anew() -> None:
    model = tiny_models.ConvNet().train()
    norm = model.blocks[0].norm
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    norm.running_mean.fill_(99)
    assert reestimate_batch_norm_(model, [images]) == 2
    with torch.no_grad():
        expected = model.blocks[0].conv(model.stem(images)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    assert norm.training
    assert reestimate_batch_norm_(tiny_models.Mlp(), []) == 0
