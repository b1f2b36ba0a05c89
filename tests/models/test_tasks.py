"""Laws of every task: the test split stays shut, options are checked, scores are means of their items."""

import math

import numpy as np
import pytest
import torch
from task_stand_ins import TinyEncoder, TinyLM, WordTokenizer, standard_library_once
from torch import nn

from sparsewright.core import DataError, ModelError, NumericError, RecipeError
from sparsewright.models import evaluating
from sparsewright.models.tasks import Quality, docstring_items, paired_difference, tasks
from sparsewright.models.tasks.base import length_batches
from sparsewright.models.tasks.encoding import encode, exact_length, pad
from sparsewright.models.tasks.images import load_images
from sparsewright.models.tasks.pairs import standard_ranks


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = TinyEncoder()
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        return self.head(self.encoder(input_ids, attention_mask).last_hidden_state[:, 0])


class Pixels(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x):
        return self.head(x.flatten(1))


def write_pairs(path, start: int):
    lines = [f'"word{i} alpha beta","word{i + i % 3} alpha, gamma",{i % 6}.5' for i in range(start, start + 40)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True)
def library_read_once(monkeypatch):
    monkeypatch.setattr(docstring_items, "standard_library", standard_library_once)


@pytest.fixture
def made(tmp_path):
    """Each task on small data, with a model for it."""
    rng = np.random.default_rng(0)

    def build(name):
        folder = tmp_path / name
        folder.mkdir()
        tokenizer, options = WordTokenizer(), {}
        model = TinyEncoder()
        if name == "docstring-retrieval":
            options = {"validation_items": 200, "test_items": 200, "recovery_files": 40, "recovery_texts": 300}
        elif name == "sentence-pairs":
            options = {"validation": write_pairs(folder / "v.csv", 0), "train": write_pairs(folder / "t.csv", 100)}
            options["test"] = write_pairs(folder / "e.csv", 200)
        elif name == "digits":
            options, model = {"size": 8, "channels": 1}, Pixels(64)
        elif name == "image-classification":
            for part in ("train", "validation", "test"):
                images = rng.integers(0, 256, (70, 4, 4, 3), dtype=np.uint8)
                np.savez(folder / f"{part}.npz", images=images, labels=rng.integers(0, 10, 70))
                options[part] = folder / f"{part}.npz"
            model = Pixels(48)
        elif name == "text-classification":
            for part in ("train", "validation", "test"):
                rows = "".join(f'"text{i} of {part}",{i % 2}\n' for i in range(50))
                (folder / f"{part}.csv").write_text("text,label\n" + rows)
                options[part] = folder / f"{part}.csv"
            model = Classifier()
        else:
            for part in ("train", "validation", "test"):
                (folder / f"{part}.txt").write_text(f"some {part} words in a line\n" * 80)
                options[part] = folder / f"{part}.txt"
            options |= {"length": 16}
            model = TinyLM()
        task = tasks.get(name).create(options, tokenizer=tokenizer, folder=folder, seed=0)
        return task, model

    return build


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_keeps_its_laws(made, name):
    task, model = made(name)
    model.train()
    quality = task.score(model, "validation", reference=model)
    assert quality.value == pytest.approx(quality.items.mean())
    assert quality.items.dtype == np.float64
    assert len(quality.slices) == len(quality.items)
    assert model.training
    assert sum(quality.by_slice().values()) / len(quality.by_slice()) <= max(quality.by_slice().values()) + 1e-12
    again = task.score(model, "validation")
    assert (again.items == quality.items).all()
    for batches in (task.calibration(), task.recovery()):
        assert batches
        for batch in batches[:3]:
            model(**batch)
    model(**task.bench_batch(2, 8))
    assert task.describe()["metric"] == task.metric


@pytest.mark.parametrize("name", tasks.names())
def test_the_test_split_is_shut_until_it_is_opened(made, name):
    task, model = made(name)
    with pytest.raises(DataError, match="opened once"):
        task.score(model, "test")
    task.open_test()
    assert len(task.score(model, "test").items) > 1


@pytest.mark.parametrize("name", tasks.names())
def test_the_same_seed_gives_the_same_batches(made, tmp_path, name):
    task, _ = made(name)
    for first, second in zip(task.recovery()[:3], task.recovery()[:3], strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_unknown_option_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(RecipeError, match=r"lenght.*length"):
        tasks.get("docstring-retrieval").create({"lenght": 3}, tokenizer=WordTokenizer(), folder=tmp_path, seed=0)


def test_a_missing_option_is_named(tmp_path):
    with pytest.raises(RecipeError, match="'validation'"):
        tasks.get("sentence-pairs").create({"train": "x.csv"}, tokenizer=WordTokenizer(), folder=tmp_path, seed=0)


def test_a_text_task_says_that_it_needs_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match="tokenizer"):
        tasks.get("docstring-retrieval").create({}, tokenizer=None, folder=tmp_path, seed=0)


def test_a_nan_in_the_model_is_an_error(made):
    task, model = made("sentence-pairs")
    with torch.no_grad():
        model.second.bias[3] = float("nan")
    with pytest.raises(NumericError, match="sentence vectors"):
        task.score(model, "validation")


def test_an_unknown_split_is_refused(made):
    task, model = made("digits")
    with pytest.raises(DataError, match="validation, test"):
        task.score(model, "train")


def test_spearman_is_the_mean_of_the_items():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 9, 50).astype(float), rng.normal(size=50)
    items = standard_ranks(first) * standard_ranks(second)
    assert items.mean() == pytest.approx(spearmanr(first, second).statistic)
    assert not standard_ranks(np.ones(4)).any()


def test_a_paired_difference_knows_its_standard_error():
    first = Quality(0.5, np.array([0.0, 1.0, 0.5]), ["a"] * 3)
    second = Quality(0.4, np.array([0.1, 0.6, 0.5]), ["a"] * 3)
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(0.1)
    assert difference.standard_error == pytest.approx(np.std([-0.1, 0.4, 0.0], ddof=1) / math.sqrt(3))
    with pytest.raises(DataError, match="same items"):
        paired_difference(first, Quality(0.5, np.zeros(2), ["a"] * 2))


def test_padding_changes_no_vector():
    model = TinyEncoder().eval()
    lists = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    together = encode(model, lists, 0)
    alone = torch.cat([encode(model, [ids], 0) for ids in lists])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert pad(lists, 0)["attention_mask"].sum(1).tolist() == [3, 1, 5]
    assert exact_length(lists, 2, 7)["input_ids"].shape == (2, 7)


def test_length_batches_use_every_item_once_and_waste_little():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 640).tolist()
    batches = length_batches(lengths, 16, seed=3)
    assert sorted(item for batch in batches for item in batch) == list(range(640))
    padded = sum(max(lengths[item] for item in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert batches != length_batches(lengths, 16, seed=4)


def test_evaluating_restores_every_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].eval()
    model[1].train()
    with evaluating(model):
        assert not model[1].training
    assert model[1].training
    assert not model[0].training


def test_pickled_images_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.array([{}], dtype=object), labels=np.array([1]))
    with pytest.raises(DataError, match="plain arrays"):
        load_images(tmp_path / "x.npz", 0.0, 1.0)


def test_a_bad_row_is_named_by_its_number(made, tmp_path):
    from sparsewright.models.tasks.pairs import read_pairs

    (tmp_path / "bad.csv").write_text("a,b,1\nc,d\n")
    with pytest.raises(DataError, match="row 2"):
        read_pairs(tmp_path / "bad.csv")


def test_the_language_model_score_is_the_negative_log_perplexity(made):
    task, model = made("text-lm")
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    assert task.score(model, "validation").value == pytest.approx(-math.log(500), rel=1e-6)
