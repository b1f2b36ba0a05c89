"""What each of two gloo processes does in the distributed tests; results go to files that the tests read."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sparsewright import keep_masks_, pack, pack_, sparsify_, train_packed_
from sparsewright.core import KernelError, ModelError
from sparsewright.nn import SparseTensor, as_parameter, masks, packed_parameters
from sparsewright.training import KeptGradients, data_parallel, kept_gradients_hook, sparse_training_

STEPS = 20
RULES = {"0": "50%", "3": "2:4x4", "5": "25%"}


def make_model(channels_last: bool = False) -> nn.Sequential:
    """A convolution and two linears, one of 63 rows that no two processes share evenly; masked, the same everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 48), nn.Tanh(), nn.Linear(48, 63)
    )
    if channels_last:
        model.to(memory_format=torch.channels_last)
    sparsify_(model, RULES)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(8, 4, 4, 4, generator=generator), torch.randn(8, 63, generator=generator)


def share(rank: int | None, tensor: Tensor) -> Tensor:
    return tensor if rank is None else tensor.chunk(2)[rank]


def train(network: nn.Module, owner: nn.Module, rank: int | None) -> None:
    """Twenty clipped steps of AdamW on this process's share of each batch; all of it where `rank` is None."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    kept = keep_masks_(owner, optimizer)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.mse_loss(network(share(rank, x)), share(rank, y)).backward()
        nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        for weight in kept.weights:
            local: Any = weight.parameter.detach()
            local = local.to_local() if hasattr(local, "to_local") else local
            assert not local[weight.dropped].any()


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.full_tensor().detach() if hasattr(parameter, "full_tensor") else parameter.detach()
        for name, parameter in model.named_parameters()
        if not isinstance(parameter, SparseTensor)
    }


def data_parallel_runs(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options in (("kept", {}), ("kept, viewed", {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.01})):
        model = make_model(channels_last=True)
        wrapped, traffic = data_parallel(model, **options)
        train(wrapped, model, rank)
        rows = {key: (row.sent_bytes, row.dense_bytes) for key, row in traffic.traffic.items()}
        found[name] = (whole_state(model), rows, (traffic.sent_bytes, traffic.dense_bytes))
        traffic.reset()
        assert traffic.sent_bytes == 0
    model = make_model(channels_last=True)
    wrapped = DistributedDataParallel(model)
    train(wrapped, wrapped, rank)
    found["dense"] = whole_state(model)
    # The hook alone, for those who wrap the model themselves.
    model = make_model(channels_last=True)
    wrapped = DistributedDataParallel(model)
    state = KeptGradients(wrapped)
    wrapped.register_comm_hook(state, kept_gradients_hook)
    train(wrapped, wrapped, rank)
    found["registered by hand"] = (whole_state(model), set(state.traffic))
    return found


def with_packed_first_linear() -> nn.Sequential:
    model = make_model()
    layer = model[3]
    packed = pack(layer.weight.detach(), layer.weight_mask, pattern="2:4x4")
    layer._parameters["weight"] = as_parameter(SparseTensor(packed))
    del layer._buffers["weight_mask"]
    return model


def frozen_packed_runs(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found: dict[str, Any] = {}
    alone = with_packed_first_linear()
    train(alone, alone, None)
    found["alone"] = whole_state(alone)
    model = with_packed_first_linear()
    before = model[3].weight.dense()
    wrapped, _ = data_parallel(model)
    train(wrapped, model, rank)
    found["ddp"] = whole_state(model)
    found["untouched"] = torch.equal(model[3].weight.dense(), before)
    mesh = init_device_mesh("cpu", (2,))
    model = with_packed_first_linear()
    try:
        fully_shard(model, mesh=mesh)
    except KernelError as error:
        found["refused"] = str(error)
    model = with_packed_first_linear()
    fully_shard(model, mesh=mesh, ignored_params=packed_parameters(model))
    train(model, model, rank)
    found["fsdp"] = whole_state(model)
    return found


def sharded_run(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    mesh = init_device_mesh("cpu", (2,))
    for number in (3, 5):
        fully_shard(model[number], mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, model, rank)
    return {"state": whole_state(model), "masks": {name: mask.clone() for name, mask in masks(model).items()}}


def packed_model() -> nn.Sequential:
    """Two packed layers that train, one in groups and one ragged, beside a dense one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Linear(48, 63))
    sparsify_(model, {"1": "2:4x4", "3": "25%"})
    pack_(model, force=True)
    train_packed_(model)
    return model


def packed_state(model: nn.Module) -> dict[str, Tensor]:
    parameters: Any = model.named_parameters()
    return {name: p.dense() if isinstance(p, SparseTensor) else p.detach() for name, p in parameters}


def train_packed(network: nn.Module, rank: int | None) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.mse_loss(network(share(rank, x)), share(rank, y)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()


class Halves(nn.Module):
    """One packed layer that only process 0 reaches, and one that nobody does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = packed_model()

    def forward(self, x: Tensor, rank: int) -> Tensor:
        hidden = self.body[1](x.flatten(1))
        return self.body[4](self.body[3](hidden) if rank == 0 else hidden)


def trained_packed_runs(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    alone = packed_model()
    train_packed(alone, None)
    found["alone"] = packed_state(alone)
    model = packed_model()
    wrapped, traffic = data_parallel(model)
    train_packed(wrapped, rank)
    found["ddp"] = packed_state(model)
    found["traffic"] = {key: (row.sent_bytes, row.dense_bytes) for key, row in traffic.traffic.items()}
    # Two passes, the first of them kept to oneself, are one pass over both.
    model, once = packed_model(), packed_model()
    wrapped, wrapped_once = data_parallel(model)[0], data_parallel(once)[0]
    x = batch(rank)[0]
    with wrapped.no_sync():
        wrapped(x[:4]).sum().backward()
    wrapped(x[4:]).sum().backward()
    wrapped_once(x).sum().backward()
    found["no_sync"] = [packed_state_of_gradients(m) for m in (model, once)]
    halves = Halves()
    wrapped, _ = data_parallel(halves, find_unused_parameters=True)
    wrapped(batch(rank)[0], rank).sum().backward()
    found["reached by one"] = halves.body[3].weight.grad.dense()  # type: ignore[union-attr, operator]
    try:
        DistributedDataParallel(packed_model())
    except KernelError as error:
        found["plain DDP"] = str(error)
    only = nn.Sequential(packed_model()[1])
    only[0].bias = None
    try:
        data_parallel(only)
    except ModelError as error:
        found["nothing else"] = str(error)
    return found


def packed_state_of_gradients(model: nn.Module) -> dict[str, Tensor]:
    gradients: Any = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.dense() if isinstance(grad, SparseTensor) else grad for name, grad in gradients.items()}


def different_masks(rank: int) -> str:
    model = make_model()
    model[3]._buffers["weight_mask"] = model[3].weight_mask.roll(rank, 1)
    try:
        data_parallel(model)
    except ModelError as error:
        return str(error)
    return ""


MOVING = ("gradual", "set", "rigl", "sr_ste")
MOVING_RULES = {"0": "50%", "3": "2:4t", "5": "25%"}


def moving_run(schedule: str, kind: str, rank: int | None) -> dict[str, Any]:
    """Eight steps of a schedule, under the model alone, DDP, DDP that sends kept gradients, or FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 48), nn.Tanh(), nn.Linear(48, 63)
    )
    sparsify_(model, MOVING_RULES)
    network: nn.Module = model
    traffic = None
    if kind == "ddp":
        network = DistributedDataParallel(model)
    elif kind.startswith("kept"):
        network, found = data_parallel(model)
        traffic = found if kind == "kept" else None
    elif kind == "fsdp":
        mesh = init_device_mesh("cpu", (2,))
        for number in (3, 5):
            fully_shard(model[number], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    training = sparse_training_(model, optimizer, MOVING_RULES, schedule=schedule, every=2, total=8, traffic=traffic)
    obeyed = True
    for step in range(8):
        x, y = batch(step)
        optimizer.zero_grad()
        F.mse_loss(network(share(rank, x)), share(rank, y)).backward()
        optimizer.step()
        for layer in training.layers.values():
            obeyed &= not layer.matrix(layer.parameter)[~layer.mask].any()
    training.finish()
    obeyed &= all(not layer.pattern.check_mask(layer.mask) for layer in training.layers.values())
    return {"state": whole_state(model), "masks": {n: m.clone() for n, m in masks(model).items()}, "obeyed": obeyed}


def resumed_shards(schedule: str) -> bool:
    """Whether a sharded model that was never sparsified ends with the same bits after a stop."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    ends: list[dict[str, Tensor]] = []
    saved: tuple[Any, Any, Any] | None = None
    for first in (0, 5):
        torch.manual_seed(first)
        model = nn.Sequential(nn.Linear(128, 48), nn.Tanh(), nn.Linear(48, 63))
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        rules = {"0": "2:4t", "2": "25%"}
        training = sparse_training_(model, optimizer, rules, schedule=schedule, every=2, total=8)
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            training.load_state_dict(saved[2])
        for step in range(first, 8):
            if step == 5 and saved is None:
                weights = {name: value.clone() for name, value in model.state_dict().items()}
                saved = (weights, copy.deepcopy(optimizer.state_dict()), training.state_dict())
            generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
            x = torch.randn(8, 128, generator=generator)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        training.finish()
        ends.append({**whole_state(model), **masks(model)})
    return all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def moving_runs(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        schedule: {kind: moving_run(schedule, kind, rank) for kind in ("ddp", "kept", "fsdp")} for schedule in MOVING
    }
    for schedule in ("gradual", "rigl", "sr_ste"):
        found[schedule]["resumed"] = resumed_shards(schedule)
    for schedule in ("rigl", "sr_ste"):
        try:
            moving_run(schedule, "kept without a word", rank)
        except ModelError as error:
            found[schedule]["refused"] = str(error)
    return found


def work(rank: int, folder: str) -> None:
    """Everything one process does, in one start of Python, because that costs more than the runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        results = {
            "ddp": data_parallel_runs(rank),
            "fsdp": sharded_run(rank),
            "packed": frozen_packed_runs(rank),
            "different": different_masks(rank),
            "trained": trained_packed_runs(rank),
            "moving": moving_runs(rank),
        }
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
