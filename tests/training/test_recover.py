"""Laws of recovery: masks never move, a killed run goes on to the same bits, NaN stops it, budgets are budgets."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsewright import masks, parse_pattern, sparsify_
from sparsewright.core import DataError, FileError, ModelError, NumericError, RecipeError
from sparsewright.training import distillations, learning_rate, masked_weights, recover
from sparsewright.training.learning_rate import RATES
from sparsewright.training.losses import Answer, EncoderDistillation
from sparsewright.training.recover import schedule


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, hidden):
        return hidden + self.second(torch.tanh(self.first(hidden)))


class Encoder(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return SimpleNamespace(last_hidden_state=self.dropout(hidden))


class WithHead(nn.Module):
    def __init__(self, every_token: bool) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(16, 50)
        self.every_token = every_token

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state
        return self.head(hidden if self.every_token else hidden.mean(1))


def make_batches(count: int = 6):
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(count):
        ids = torch.randint(0, 50, (8, 5 + number % 3), generator=generator)
        mask = torch.ones_like(ids)
        mask[:3, -2:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def halve(model):
    """Keep the larger half of every block's weights, as sparsify_ leaves it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "blocks" in name:
            kept = module.weight.detach().abs() >= module.weight.detach().abs().median()
            module.weight.data.mul_(kept)
            module.register_buffer("weight_mask", kept)
    return model


def test_masked_weights_stay_zero_and_masks_stay_as_they_were():
    teacher = Encoder()
    model = halve(copy.deepcopy(teacher))
    kept_zero = model.blocks[0].first.weight_mask.nonzero()[0]
    model.blocks[0].first.weight.data[tuple(kept_zero)] = 0.0
    masks = {weight.name: weight.dropped.clone() for weight in masked_weights(model)}
    recovery = recover(model, teacher, make_batches(), steps=30, lr=3e-3, weight_decay=0.1)
    assert recovery.steps == len(recovery.losses) == 30
    for weight in masked_weights(model):
        assert torch.equal(weight.dropped, masks[weight.name])
        assert not weight.parameter[weight.dropped].any()
    # The mask is the truth: a kept weight that happened to be zero may move again.
    assert model.blocks[0].first.weight.data[tuple(kept_zero)] != 0.0


def test_the_student_comes_nearer_and_the_teacher_is_only_read():
    teacher = Encoder()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = halve(copy.deepcopy(teacher))
    losses = recover(model, teacher, make_batches(), steps=60, lr=3e-3, blocks=["blocks.0", "blocks.1"]).losses
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model.embedding.weight, teacher.embedding.weight)


@pytest.mark.parametrize("family, every_token", [("classifier", False), ("causal_lm", True)])
def test_other_families_come_nearer_too(family, every_token):
    torch.manual_seed(0)
    teacher = WithHead(every_token)
    model = halve(copy.deepcopy(teacher))
    losses = recover(model, teacher, make_batches(), steps=60, lr=3e-3, family=family).losses
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6])


@pytest.mark.parametrize("family", distillations.names())
def test_a_student_that_equals_its_teacher_has_no_loss(family):
    generator = torch.Generator().manual_seed(0)
    shape = (6, 50) if family == "classifier" else (6, 5, 50)
    output = torch.randn(shape, generator=generator)
    hidden = [torch.randn(6, 5, 16, generator=generator)]
    answer = Answer(output, hidden)
    mask = {"attention_mask": torch.ones(6, 5, dtype=torch.int64)}
    loss = distillations.get(family).loss(answer, answer, mask)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)
    other = Answer(output + torch.randn(shape, generator=generator), [hidden[0] + 1.0])
    assert float(distillations.get(family).loss(other, answer, mask)) > 0.1


def test_padding_has_no_part_in_the_loss():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(4, 6, 8, generator=generator), torch.randn(4, 6, 8, generator=generator)
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[:, 4:] = 0
    changed = ours.clone()
    changed[:, 4:] = 100.0
    family = EncoderDistillation()
    batch = {"attention_mask": mask}
    loss = family.loss(Answer(ours, [ours]), Answer(theirs, [theirs]), batch)
    assert torch.equal(loss, family.loss(Answer(changed, [changed]), Answer(theirs, [theirs]), batch))


def test_the_same_run_gives_the_same_bits_and_an_interrupted_one_too(tmp_path):
    teacher = Encoder()
    whole, stopped = halve(copy.deepcopy(teacher)), halve(copy.deepcopy(teacher))
    settings = {"steps": 25, "lr": 3e-3, "blocks": ["blocks.1"]}
    recover(whole, teacher, make_batches(), **settings)

    class StoppedError(Exception):
        pass

    def stop(step, total, loss):
        if step == 11:
            raise StoppedError

    path = tmp_path / "recover.safetensors"
    with pytest.raises(StoppedError):
        recover(stopped, teacher, make_batches(), checkpoint=path, checkpoint_every_s=0.0, progress=stop, **settings)
    fresh = halve(copy.deepcopy(teacher))
    recovery = recover(fresh, teacher, make_batches(), checkpoint=path, **settings)
    assert recovery.resumed_at == 11
    assert len(recovery.losses) == 25
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in whole.state_dict().items())
    # A finished run is read back, not run again.
    again = halve(copy.deepcopy(teacher))
    assert recover(again, teacher, make_batches(), checkpoint=path, **settings).resumed_at == 25
    assert torch.equal(again.blocks[0].first.weight, whole.blocks[0].first.weight)


KILLED = """
    import copy, sys, torch
    sys.path.insert(0, {tests!r})
    from test_recover import Encoder, halve, make_batches
    from sparsewright.training import recover
    torch.set_num_threads(1)
    teacher = Encoder()
    def tell(step, total, loss):
        print(step, flush=True)
    model = halve(copy.deepcopy(teacher))
    settings = dict(steps=80, lr=3e-3, checkpoint={path!r}, checkpoint_every_s=0.0)
    recover(model, teacher, make_batches(), progress=tell, **settings)
    torch.save({{k: v for k, v in model.state_dict().items()}}, {path!r} + '.done')
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_9_loses_nothing_but_time(tmp_path):
    results = []
    for killed in (False, True):
        path = str(tmp_path / f"run{killed}.safetensors")
        code = textwrap.dedent(KILLED.format(tests=str(Path(__file__).parent), path=path))
        command = [sys.executable, "-c", code]
        if killed:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= 20:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            process.wait()
            process.stdout.close()
            assert process.returncode == -signal.SIGKILL
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results.append(torch.load(path + ".done", weights_only=True))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_minutes_budget_becomes_a_stored_number_of_steps(tmp_path):
    teacher = Encoder()
    path = tmp_path / "recover.safetensors"
    steps = []
    for _ in range(2):
        model = halve(copy.deepcopy(teacher))
        steps.append(recover(model, teacher, make_batches(), minutes=0.01, lr=1e-3, checkpoint=path).steps)
    assert steps[0] == steps[1] >= 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    teacher = Encoder()
    path = tmp_path / "recover.safetensors"
    recover(halve(copy.deepcopy(teacher)), teacher, make_batches(), steps=2, checkpoint=path)
    with pytest.raises(DataError, match="another training"):
        recover(halve(copy.deepcopy(teacher)), teacher, make_batches(), steps=2, lr=1e-4, checkpoint=path)
    with pytest.raises(DataError, match="another training"):
        recover(halve(copy.deepcopy(teacher)), teacher, make_batches(5), steps=2, checkpoint=path)


def test_a_broken_checkpoint_is_one_sentence(tmp_path):
    path = tmp_path / "recover.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{not json")
    with pytest.raises(FileError, match="not a whole checkpoint"):
        recover(halve(Encoder()), Encoder(), make_batches(), steps=2, checkpoint=path)


def test_nan_stops_the_run_before_it_reaches_the_weights():
    teacher = Encoder()
    model = halve(copy.deepcopy(teacher))
    before = copy.deepcopy(model.state_dict())
    teacher.blocks[0].first.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericError, match="step 1"):
        recover(model, teacher, make_batches(), steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_budgets_batches_and_blocks_are_checked():
    model = halve(Encoder())
    with pytest.raises(RecipeError, match="exactly one budget"):
        recover(model, Encoder(), make_batches())
    with pytest.raises(RecipeError, match="exactly one budget"):
        recover(model, Encoder(), make_batches(), steps=1, minutes=1.0)
    with pytest.raises(RecipeError, match="at least one, or minutes above zero"):
        recover(model, Encoder(), make_batches(), steps=0)
    with pytest.raises(DataError, match="at least one batch"):
        recover(model, Encoder(), [], steps=1)
    with pytest.raises(ModelError, match=r"blocks\.7"):
        recover(model, Encoder(), make_batches(), steps=1, blocks=["blocks.7"])


def test_a_mask_that_does_not_match_its_weight_is_refused():
    model = Encoder()
    model.blocks[0].first.register_buffer("weight_mask", torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ModelError, match=r"blocks\.0\.first\.weight"):
        masked_weights(model)


def test_the_learning_rate_rises_falls_and_ends_near_zero():
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0)
    assert shares[-1] == pytest.approx(1 / 90)
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert json.dumps(shares)


def test_batches_may_be_tensors_tuples_or_dicts_with_the_same_result():
    teacher = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    inputs = [torch.randn(12, 16, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    trained = []
    for batches in (inputs, [(x,) for x in inputs], [{"input": x} for x in inputs]):
        model = halve(copy.deepcopy(teacher))
        recover(model, teacher, batches, steps=6, family="classifier", lr=3e-3)
        trained.append(model[2].weight.detach().clone())
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])
    assert not torch.equal(trained[0], halve(copy.deepcopy(teacher))[2].weight)
    with pytest.raises(DataError, match="got str"):
        recover(halve(copy.deepcopy(teacher)), teacher, ["a text"], steps=1, family="classifier")


@pytest.mark.parametrize(
    "wrong",
    [
        {"minutes": float("inf")},
        {"minutes": float("nan")},
        {"steps": 2.5},
        {"steps": "2"},
        {"steps": 2, "lr": float("nan")},
        {"steps": 2, "warmup": -1},
        {"steps": 2, "seed": -1},
    ],
)
def test_budgets_and_settings_that_mean_nothing_are_refused(wrong):
    teacher = Encoder()
    with pytest.raises(RecipeError):
        recover(halve(copy.deepcopy(teacher)), teacher, make_batches(), **wrong)


def test_after_an_error_the_parameters_require_gradients_as_before():
    teacher = Encoder()
    model = halve(copy.deepcopy(teacher))
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(ModelError):
        recover(model, teacher, make_batches(), steps=2, blocks=["nowhere"])
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_learning_rate_is_chosen_by_trials_that_leave_no_trace(tmp_path):
    torch.manual_seed(0)
    teacher = Encoder()
    student = halve(copy.deepcopy(teacher))
    path = tmp_path / "auto.checkpoint"
    chosen = recover(student, teacher, make_batches(), steps=40, lr="auto", checkpoint=path)
    assert chosen.lr in RATES
    assert len(chosen.losses) == 40
    by_hand = halve(copy.deepcopy(teacher))
    assert recover(by_hand, teacher, make_batches(), steps=40, lr=chosen.lr).losses == chosen.losses
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), by_hand.state_dict().values()))
    # The checkpoint remembers the choice.
    again = recover(halve(copy.deepcopy(teacher)), teacher, make_batches(), steps=40, lr="auto", checkpoint=path)
    assert (again.lr, again.resumed_at) == (chosen.lr, 40)


def test_an_interrupted_run_goes_on_at_the_rate_it_chose(tmp_path, monkeypatch):
    torch.manual_seed(0)
    teacher = Encoder()
    whole = recover(halve(copy.deepcopy(teacher)), teacher, make_batches(), steps=12, lr="auto")

    def stop(step, steps, loss):
        if step == 5:
            raise KeyboardInterrupt

    path = tmp_path / "auto.checkpoint"
    settings = {"steps": 12, "lr": "auto", "checkpoint": path, "checkpoint_every_s": 0.0}
    student = halve(copy.deepcopy(teacher))
    with pytest.raises(KeyboardInterrupt):
        recover(student, teacher, make_batches(), progress=stop, **settings)
    # Another choice could not be made any more.
    monkeypatch.setattr(learning_rate, "RATES", (5e-2,))
    resumed = recover(halve(copy.deepcopy(teacher)), teacher, make_batches(), **settings)
    assert (resumed.losses, resumed.lr) == (whole.losses, whole.lr)


@pytest.mark.parametrize(
    ("losses", "best"), [((3.0, 2.0, 1.0), 1e-3), ((1.0, 1.0, 2.0), 1e-4), ((3.0, 2.0, None), 3e-4)]
)
def test_the_rate_of_least_loss_wins_and_one_that_diverges_does_not(losses, best):
    told = dict(zip(RATES, losses))

    def trial(rate, steps):
        assert steps == 5
        if told[rate] is None:
            raise NumericError("diverged")
        return told[rate]

    assert learning_rate.choose_rate(trial, total=100) == best


def test_no_rate_with_a_finite_loss_is_an_error():
    with pytest.raises(NumericError, match="No learning rate"):
        learning_rate.choose_rate(lambda rate, steps: float("inf"), total=100)


@pytest.mark.parametrize("name", ["rigl", "sr_ste"])
def test_masks_move_within_their_patterns_and_an_interrupted_run_ends_with_the_same_bits(tmp_path, name):
    patterns = {f"blocks.{block}.{layer}": "2:4t" for block in (0, 1) for layer in ("first", "second")}

    def run(steps_before_stop=None):
        teacher, student = Encoder(), Encoder()
        sparsify_(student, patterns)
        before = {key: mask.clone() for key, mask in masks(student).items()}
        told = []

        def stop(step, total, loss):
            told.append(loss)
            if step == steps_before_stop:
                raise KeyboardInterrupt

        options = {"steps": 9, "checkpoint": tmp_path / "file", "checkpoint_every_s": 0.0, "progress": stop}
        try:
            recover(student, teacher, make_batches(), mask_schedule=name, mask_every=2, lr=0.05, **options)
        except KeyboardInterrupt:
            return None
        return student, before, told

    straight, before, _ = run()
    (tmp_path / "file").unlink()
    assert run(steps_before_stop=5) is None
    resumed, _, told = run()
    assert len(told) == 4
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert any(not torch.equal(mask, before[key]) for key, mask in masks(straight).items())
    for key, mask in masks(straight).items():
        assert parse_pattern("2:4t").check_mask(mask) == []
        assert not straight.get_submodule(key).weight.detach()[~mask].any()


def test_a_mask_schedule_that_starts_dense_is_refused():
    student = Encoder()
    with pytest.raises(RecipeError, match="starts dense"):
        recover(student, Encoder(), make_batches(), steps=2, mask_schedule="gradual")
