"""Laws of documentation retrieval: what is an item, who shares a split, and that the list never changes unseen."""

import ast

import numpy as np
import pytest
import torch
from task_stand_ins import TinyEncoder, WordTokenizer, standard_library_once

from sparsewright.core import DataError
from sparsewright.models.tasks import docstring_items
from sparsewright.models.tasks.docstring_items import assign_splits, load_items, load_recovery_texts
from sparsewright.models.tasks.docstring_text import Docstring, docstrings_of, documented, split_sentence
from sparsewright.models.tasks.docstrings import DocstringRetrieval, rank_among_candidates


@pytest.fixture(autouse=True, scope="module")
def library_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstring_items, "standard_library", standard_library_once)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("docstrings")


@pytest.fixture(scope="module")
def items(folder):
    return load_items(folder, seed=0, validation=1000, test=1500)


def test_a_sentence_ends_at_its_stop_or_with_its_paragraph():
    assert split_sentence("Return x. It is y.") == ("Return x.", "It is y.")
    assert split_sentence("Version 3.11 of\nthe thing. More") == ("Version 3.11 of the thing.", "More")
    assert split_sentence("No stop here\n\nSecond part.") == ("No stop here", "Second part.")
    assert split_sentence("See e.g. this one. Then") == ("See e.g. this one.", "Then")


def test_source_is_parsed_and_never_run(tmp_path):
    source = '"""Module text."""\nraise SystemExit\nclass A:\n    """Class text."""\n'
    source += '    def f(self):\n        """F."""\n'
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "broken.py").write_text("def (:\n")
    found = list(docstrings_of(tmp_path / "mine.py", tmp_path))
    assert [(item.name, item.query) for item in found] == [
        ("mine.py:1", "Module text."),
        ("mine.py:3", "Class text."),
        ("mine.py:5", "F."),
    ]
    assert list(docstrings_of(tmp_path / "broken.py", tmp_path)) == []
    assert len(list(documented(ast.parse(source)))) == 3


def test_validation_and_test_are_large_enough_and_share_no_package(items):
    splits, facts = items
    assert len(splits["validation"]) >= 1000
    assert len(splits["test"]) >= 1500
    packages = [{item.package for item in splits[name]} for name in ("calibration", "validation", "test")]
    assert not packages[0] & packages[1]
    assert not packages[0] & packages[2]
    assert not packages[1] & packages[2]
    assert facts["counts"]["test"] == len(splits["test"])


def test_the_list_is_reread_and_not_made_again(items, folder):
    before = (folder / "items.jsonl").stat().st_mtime_ns
    assert load_items(folder, seed=0, validation=1000, test=1500)[1] == items[1]
    assert (folder / "items.jsonl").stat().st_mtime_ns == before


def test_a_changed_list_and_other_options_are_refused(tmp_path):
    load_items(tmp_path, seed=0, validation=50, test=50)
    with pytest.raises(DataError, match="seed=1"):
        load_items(tmp_path, seed=1, validation=50, test=50)
    content = (tmp_path / "items.jsonl").read_bytes()
    (tmp_path / "items.jsonl").write_bytes(content[:-2] + b"\n")
    with pytest.raises(DataError, match="sha256"):
        load_items(tmp_path, seed=0, validation=50, test=50)


def test_too_few_items_are_one_clear_sentence():
    with pytest.raises(DataError, match="validation_items"):
        assign_splits([Docstring("a", "a.py:1", "q", "t")], 0, 10, 10)


def test_recovery_text_holds_nothing_of_validation_or_test(items, folder):
    texts, facts = load_recovery_texts(folder, items[0], seed=0, most_files=150, most_texts=2000)
    held_items = items[0]["validation"] + items[0]["test"]
    held_out = {half for item in held_items for half in (item.query, item.target)}
    assert not held_out & set(texts)
    assert len(texts) == len(set(texts)) or max(map(len, texts)) == 1000
    assert facts["counts"]["calibration"] > 0
    assert facts["counts"]["installed"] > 0
    assert load_recovery_texts(folder, items[0], seed=0, most_files=150, most_texts=2000)[0] == texts


def test_test_items_are_shut_too(folder):
    task = DocstringRetrieval(tokenizer=WordTokenizer(), folder=folder)
    with pytest.raises(DataError, match="open_test"):
        task.items("test")
    assert len(task.items("validation")) >= 1000


def test_ranks_of_a_perfect_a_random_and_a_collapsed_model():
    perfect, first = rank_among_candidates(torch.eye(150), seed=0)
    assert (perfect == 1).all()
    assert (first == 1).all()
    collapsed, first = rank_among_candidates(torch.ones(150, 150), seed=0)
    assert np.allclose(collapsed, 1 / 100)
    assert not first.any()
    random, _ = rank_among_candidates(torch.rand(400, 400, generator=torch.Generator().manual_seed(5)), seed=0)
    assert random.mean() == pytest.approx(sum(1 / rank for rank in range(1, 101)) / 100, abs=0.015)


def test_ranks_agree_with_counting_by_hand():
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.2, 0.8, 0.3], [0.7, 0.6, 0.6]], dtype=torch.float64)
    reciprocal, first = rank_among_candidates(scores, seed=0, candidates=3, draws=2)
    assert reciprocal.tolist() == [1 / 2, 1.0, 1 / 3]
    assert first.tolist() == [0.0, 1.0, 0.0]


def test_fidelity_of_the_reference_to_itself_is_one(folder):
    task = DocstringRetrieval(tokenizer=WordTokenizer(), folder=folder)
    model = TinyEncoder().eval()
    quality = task.score(model, "validation", reference=model)
    assert quality.extra["cosine_to_dense"] == pytest.approx(1.0, abs=1e-5)
    assert 0.0 < quality.value < 1.0
    assert quality.extra["accuracy_at_1"] <= quality.value
