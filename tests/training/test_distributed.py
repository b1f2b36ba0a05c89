"""Two gloo processes: DDP sends kept gradients only, FSDP2 shards weights and masks alike, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_runs import (
    MOVING,
    RULES,
    STEPS,
    make_model,
    moving_run,
    packed_model,
    packed_state,
    train,
    whole_state,
    work,
)
from torch import Tensor

from sparsewright.nn import masks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
]
# Float32 sums in another order, through twenty steps of an optimiser that divides by the gradient's size.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """The same training in one process, on whole batches."""
    model = make_model()
    train(model, model, None)
    return whole_state(model)


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("run", ["kept", "kept, viewed"])
def test_replicas_are_equal_bit_for_bit_after_twenty_steps(ranks: list[dict[str, Any]], run: str) -> None:
    assert same_bits(ranks[0]["ddp"][run][0], ranks[1]["ddp"][run][0])
    assert any(
        bool((value != make_model().state_dict()[name]).any()) for name, value in ranks[0]["ddp"][run][0].items()
    )


@pytest.mark.parametrize("run", ["kept", "kept, viewed"])
def test_a_masked_weight_sends_its_kept_gradients_only(ranks: list[dict[str, Any]], run: str) -> None:
    parameters = dict(make_model().named_parameters())
    density = {f"{name}.weight": float(mask.float().mean()) for name, mask in masks(make_model()).items()}
    for rank in ranks:
        _, rows, (sent, dense) = rank["ddp"][run]
        assert rows.keys() == parameters.keys()
        for name, (sent_bytes, dense_bytes) in rows.items():
            assert dense_bytes == STEPS * 4 * parameters[name].numel()
            assert sent_bytes <= 1.1 * density.get(name, 1.0) * dense_bytes
        assert sent == sum(row[0] for row in rows.values())
        assert dense == STEPS * 4 * sum(parameter.numel() for parameter in parameters.values())
        assert sent < 0.5 * dense
    assert density.keys() == {f"{name}.weight" for name in RULES}


@pytest.mark.parametrize("run", ["kept", "kept, viewed"])
def test_it_trains_as_torchs_dense_reduction_does(ranks: list[dict[str, Any]], run: str) -> None:
    ours, theirs = ranks[0]["ddp"][run][0], ranks[0]["ddp"]["dense"]
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_hook_can_be_registered_by_hand(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        state, names = rank["ddp"]["registered by hand"]
        torch.testing.assert_close(state, rank["ddp"]["dense"], **CLOSE)
        assert names == {f"module.{name}" for name in state}


def test_data_parallel_training_equals_training_alone(ranks: list[dict[str, Any]], alone: dict[str, Tensor]) -> None:
    torch.testing.assert_close(ranks[0]["ddp"]["kept"][0], alone, **CLOSE)


def test_gathered_shards_are_equal_on_both_ranks_and_to_training_alone(
    ranks: list[dict[str, Any]], alone: dict[str, Tensor]
) -> None:
    assert same_bits(ranks[0]["fsdp"]["state"], ranks[1]["fsdp"]["state"])
    torch.testing.assert_close(ranks[0]["fsdp"]["state"], alone, **CLOSE)


def test_gathered_shards_obey_the_whole_mask(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        expected = masks(make_model())
        assert rank["fsdp"]["masks"].keys() == expected.keys()
        for name, mask in expected.items():
            assert torch.equal(rank["fsdp"]["masks"][name], mask)
            weight = rank["fsdp"]["state"][f"{name}.weight"]
            assert torch.equal(weight != 0, mask)


def test_a_packed_parameter_is_not_sharded_and_the_error_says_how_to_keep_it_out(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "ignored_params=sparsewright.nn.packed_parameters(model)" in rank["packed"]["refused"]
        assert rank["packed"]["refused"].startswith("Packed parameters are not sharded")


@pytest.mark.parametrize("run", ["ddp", "fsdp"])
def test_what_stands_beside_frozen_packed_layers_trains_as_alone(ranks: list[dict[str, Any]], run: str) -> None:
    for rank in ranks:
        assert rank["packed"]["untouched"]
        torch.testing.assert_close(rank["packed"][run], rank["packed"]["alone"], **CLOSE)
    assert same_bits(ranks[0]["packed"][run], ranks[1]["packed"][run])


def test_masks_that_differ_between_processes_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["different"].startswith("Masks must be the same on every process, but 1 of 2 processes have others")


def test_packed_weights_train_alike_on_both_processes_and_as_alone(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["trained"] for rank in ranks)
    assert same_bits(first["ddp"], second["ddp"])
    torch.testing.assert_close(first["ddp"], first["alone"], **CLOSE)
    before = packed_state(packed_model())
    for name, value in first["ddp"].items():
        assert not torch.equal(value, before[name])
        if name in ("1.weight", "3.weight"):
            assert torch.equal(value != 0, before[name] != 0)


def test_packed_weights_send_their_kept_gradients_only(ranks: list[dict[str, Any]]) -> None:
    parameters: Any = dict(packed_model().named_parameters())
    for rank in ranks:
        rows = rank["trained"]["traffic"]
        assert rows.keys() == parameters.keys()
        for name, density in (("1.weight", 0.5), ("3.weight", 0.25)):
            sent, dense = rows[name]
            assert dense == STEPS * 4 * parameters[name].numel()
            assert density * dense <= sent <= 1.1 * density * dense


def test_gradients_of_packed_weights_add_up_without_being_shared(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        in_two, at_once = rank["trained"]["no_sync"]
        torch.testing.assert_close(in_two, at_once, rtol=1e-4, atol=1e-4)
    assert same_bits(ranks[0]["trained"]["no_sync"][0], ranks[1]["trained"]["no_sync"][0])


def test_a_packed_weight_that_one_process_reaches_has_its_gradient_everywhere(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (rank["trained"]["reached by one"] for rank in ranks)
    assert first.any()
    assert torch.equal(first, second)


def test_what_ddp_cannot_do_with_packed_weights_is_told(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "wrap the model with sparsewright.training.data_parallel(model)" in rank["trained"]["plain DDP"]
        assert rank["trained"]["nothing else"].startswith("DDP wraps models that train something beside packed weights")


@pytest.mark.parametrize("kind", ["ddp", "kept", "fsdp"])
@pytest.mark.parametrize("schedule", MOVING)
def test_moving_masks_and_weights_are_equal_on_both_ranks(
    ranks: list[dict[str, Any]], schedule: str, kind: str
) -> None:
    first, second = (rank["moving"][schedule][kind] for rank in ranks)
    assert same_bits(first["state"], second["state"])
    assert same_bits(first["masks"], second["masks"])
    assert first["obeyed"]
    assert second["obeyed"]


@pytest.mark.parametrize("schedule", MOVING)
def test_masks_move_over_two_processes_as_they_do_in_one(ranks: list[dict[str, Any]], schedule: str) -> None:
    alone = moving_run(schedule, "alone", None)
    for kind in ("ddp", "kept", "fsdp"):
        found = ranks[0]["moving"][schedule][kind]["masks"]
        for name, mask in alone["masks"].items():
            # Means of gradients in another order: places that are as good as each other may change sides.
            assert float((found[name] == mask).float().mean()) > 0.97, (kind, name)


@pytest.mark.parametrize("schedule", ["rigl", "sr_ste"])
def test_gradients_of_dropped_weights_that_do_not_travel_are_missed_aloud(
    ranks: list[dict[str, Any]], schedule: str
) -> None:
    for rank in ranks:
        assert "pass its second result as traffic=" in rank["moving"][schedule]["refused"]


@pytest.mark.parametrize("schedule", ["gradual", "rigl", "sr_ste"])
def test_sharded_training_under_a_schedule_resumes_to_the_same_bits(ranks: list[dict[str, Any]], schedule: str) -> None:
    assert all(rank["moving"][schedule]["resumed"] for rank in ranks)
