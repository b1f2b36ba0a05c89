"""Data in one form, and a test split that stays shut."""

import pytest
import tiny_models
import torch

from sparsewright.core import DataError
from sparsewright.models import Data, batches_of


def test_tensors_tuples_and_dicts_become_batches() -> None:
    x = torch.zeros(1)
    batches = batches_of([x, (x, 2), {"a": x}])
    assert [batch.args for batch in batches] == [(x,), (x, 2), ()]
    assert batches[2].kwargs == {"a": x}


def test_a_forward_loop_is_recorded() -> None:
    model = tiny_models.Mlp()

    def loop(model):
        for _ in range(3):
            model(torch.zeros(2, 32))

    assert len(batches_of(loop, model)) == 3
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("data", [[], iter(()), lambda model: None])
def test_empty_data_are_an_error(data) -> None:
    with pytest.raises(DataError, match="no batch"):
        batches_of(data, tiny_models.Mlp())


@pytest.mark.parametrize("data", [torch.zeros(2, 2), "text", {"input_ids": 1}])
def test_a_single_batch_is_not_an_iterable_of_batches(data) -> None:
    with pytest.raises(DataError, match=r"data=\[batch\]"):
        batches_of(data)


def test_text_in_a_batch_must_be_tokenised_first() -> None:
    with pytest.raises(DataError, match="Tokenise"):
        batches_of(["some text"])
    with pytest.raises(DataError, match="forward_loop"):
        batches_of(3)


def test_more_batches_than_the_cap_warn_and_are_cut() -> None:
    def endless():
        while True:
            yield torch.zeros(1)

    with pytest.warns(UserWarning, match="first 5"):
        assert len(batches_of(endless(), cap=5)) == 5


def test_the_test_split_raises_until_it_is_opened() -> None:
    data = Data(calibration=[torch.zeros(1)], test=[torch.ones(1)])
    with pytest.raises(DataError, match="opened once"):
        _ = data.test
    data.open_test()
    assert len(data.test) == 1
    with pytest.raises(DataError, match="validation="):
        _ = data.validation


def test_a_generator_can_be_read_again_from_data() -> None:
    data = Data(calibration=(torch.zeros(1) for _ in range(3)))
    assert len(batches_of(data)) == len(batches_of(data.calibration)) == 3
