"""Data parallel training of a masked or packed model: only the gradients of kept weights travel.

The masks are the same on every process and known to all of them, so a gradient needs no index: its kept values are
gathered into one row, reduced, and put back. Compare torch's default hook, which reduces the zeros as well.
"""

import hashlib
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ..core import ModelError
from ..models import MASK
from ..nn import SparseTensor
from .keep_masks import never
from .masked_weights import MaskedWeight, MaskStamp, masked_weights
from .packed_gradients import PackedGradients
from .traffic import GradientTraffic

if TYPE_CHECKING:
    GradBucket = Any
else:
    # DDP wants exactly this class in the hook's signature; a torch without distributed lacks it.
    GradBucket = getattr(dist, "GradBucket", object)


@final
class KeptGradients:
    """State of `kept_gradients_hook`: which gradients are masked, and how many bytes were sent.

    Args:
        model: masked, or packed and in training; before or after it is wrapped in DDP. Its masks must be the same on
            every process.
        group: the processes that share gradients; None: all.

    Attributes:
        traffic: parameter name -> bytes, filled as gradients are reduced; masked parameters and all others.
        whole: asked for every bucket; True sends the gradients of dropped weights as well. A mask schedule that looks
            at them sets it (`sparse_training_(traffic=...)`).

    Raises:
        ModelError: no layer is masked and no packed weight trains, or the masks differ between processes.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        self.group = dist.group.WORLD if group is None else group
        self._weights = {id(weight.parameter): weight for weight in masked_weights(model)}
        if not self._weights and not trained_packed(model):
            raise ModelError(
                "No layer of this model is masked, and no packed weight trains, so DDP has nothing to leave out. Call "
                "sparsify_ first, or train_packed_ after pack_."
            )
        require_same_everywhere("Masks", (weight.kept for weight in self._weights.values()), self.group)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.traffic: dict[str, GradientTraffic] = {}
        self.whole: Callable[[], bool] = never
        self._places: dict[int, tuple[MaskStamp, Tensor]] = {}

    @property
    def sent_bytes(self) -> int:
        """Bytes of all gradients that this process handed to all-reduce."""
        return sum(row.sent_bytes for row in self.traffic.values())

    @property
    def dense_bytes(self) -> int:
        """Bytes that torch's default hook would have handed over."""
        return sum(row.dense_bytes for row in self.traffic.values())

    def reset(self) -> None:
        """Count from zero again."""
        self.traffic.clear()

    def parts(self, bucket: GradBucket) -> list[tuple[Tensor, Tensor | None]]:
        """The bucket cut into parameters: `(elements,)` views in memory order, and `(kept,)` int64 places of the kept
        ones, None where all are."""
        found: list[tuple[Tensor, Tensor | None]] = []
        buffer, start, whole = bucket.buffer(), 0, self.whole()
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            flat = buffer[start : start + gradient.numel()]
            start += gradient.numel()
            weight = self._weights.get(id(parameter))
            places = None if weight is None or whole else self._kept_places(weight)
            sent = flat.numel() if places is None else places.numel()
            row = self.traffic.setdefault(self._names.get(id(parameter), "?"), GradientTraffic())
            row.sent_bytes += sent * flat.element_size()
            row.dense_bytes += flat.numel() * flat.element_size()
            found.append((flat, places))
        return found

    def _kept_places(self, weight: MaskedWeight) -> Tensor:
        stamp = weight.stamp()
        known = self._places.get(id(weight))
        if known is None or not known[0].same(stamp):
            # Buckets hold a gradient in the memory order of its parameter (channels-last for instance) if that has no
            # gaps, else row by row; the shapes that `bucket.gradients()` shows are row by row always.
            ordered = torch.empty_like(weight.parameter, dtype=torch.bool, requires_grad=False)
            if ordered.stride() != weight.parameter.stride():
                ordered = torch.empty(weight.parameter.shape, dtype=torch.bool, device=weight.parameter.device)
            ordered.copy_(weight.kept)
            places = ordered.as_strided((ordered.numel(),), (1,)).nonzero().flatten()
            known = (stamp, places)
            self._places[id(weight)] = known
        return known[1]


def kept_gradients_hook(state: KeptGradients, bucket: GradBucket) -> Future[Tensor]:
    """A DDP communication hook: the mean over processes of the kept gradients; dropped ones become zero.

    Use `ddp.register_comm_hook(KeptGradients(model), kept_gradients_hook)`, or `data_parallel`, which does it.
    Memory: 8 bytes per kept weight, once.
    """
    parts = state.parts(bucket)
    buffer = bucket.buffer()
    lengths = [flat.numel() if places is None else places.numel() for flat, places in parts]
    row = buffer.new_empty(sum(lengths))
    for piece, (flat, places) in zip(row.split(lengths), parts, strict=True):
        if places is None:
            piece.copy_(flat)
        else:
            torch.index_select(flat, 0, places, out=piece)
    # Divided first, as torch's own hook does, so that sums do not overflow 16-bit gradients.
    row.div_(dist.get_world_size(state.group))
    work: Any = dist.all_reduce(row, group=state.group, async_op=True)

    @torch.no_grad()
    def put_back(_: Any) -> Any:
        for piece, (flat, places) in zip(row.split(lengths), parts, strict=True):
            if places is None:
                flat.copy_(piece)
            else:
                flat.zero_().index_copy_(0, places, piece)
        return buffer

    reduced: Future[Tensor] = work.get_future().then(put_back)
    return reduced


def trained_packed(model: nn.Module) -> dict[str, SparseTensor]:
    """Every packed weight that requires a gradient, by its first name."""
    parameters: Iterable[tuple[str, Any]] = model.named_parameters()
    return {name: value for name, value in parameters if isinstance(value, SparseTensor) and value.requires_grad}


def data_parallel(model: nn.Module, **options: Any) -> tuple[DistributedDataParallel, KeptGradients]:
    """Wrap a masked or packed model in DDP so that only kept gradients travel, and neither masks nor packed weights do.

    By default DDP sends every buffer at every forward pass, masks among them, and every parameter once, which packed
    ones do not survive. Both are equal on all processes already, which is checked here. Packed weights that train share
    the gradients of their kept values when a backward pass ends (`PackedGradients`), `no_sync()` holds for them too.

    Args:
        model: after `sparsify_`, or after `pack_` and `train_packed_`, or some layers so and some otherwise.
        options: for `DistributedDataParallel`, for instance `process_group` or `gradient_as_bucket_view`.

    Returns:
        The wrapped model, and the hook's state, whose `traffic` counts bytes.

    Raises:
        ModelError: no layer is masked and no packed weight trains, nothing else than packed weights trains, or masks or
            packed weights differ between processes.
    """
    parameters: Iterable[tuple[str, Any]] = model.named_parameters()
    packed = {name: value for name, value in parameters if isinstance(value, SparseTensor)}
    trained = trained_packed(model)
    if trained and not any(value.requires_grad for value in model.parameters() if not isinstance(value, SparseTensor)):
        raise ModelError(
            "DDP wraps models that train something beside packed weights, a bias or a norm say, and this one does not. "
            "Let one of them require a gradient."
        )
    state = KeptGradients(model, options.get("process_group"))
    inner = (tensor for value in packed.values() for tensor in value.packed.tensors.values())
    require_same_everywhere("Packed weights", inner, state.group)
    own = [name for name, _ in model.named_buffers() if name.rpartition(".")[2] == MASK]
    # A tied weight is left out under each of its names.
    names = [name for name, value in model.named_parameters(remove_duplicate=False) if isinstance(value, SparseTensor)]
    before = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*before, *own, *names])
    wrapped = DistributedDataParallel(model, **options)
    wrapped.register_comm_hook(state, kept_gradients_hook)
    if trained:
        # Weak, so that the hooks of a model that is wrapped again do nothing more.
        alive = weakref.ref(wrapped)
        PackedGradients(trained, state.group, lambda: _is_due(alive()), state.traffic)
    return wrapped, state


def _is_due(wrapped: DistributedDataParallel | None) -> bool:
    return wrapped is not None and bool(wrapped.require_backward_grad_sync)


def require_same_everywhere(what: str, tensors: Iterable[Tensor], group: Any) -> None:
    """Compare tensors over processes by their sha256; every process must call it.

    Raises:
        ModelError: one process holds others.
    """
    digest, device = hashlib.sha256(), torch.device("cpu")
    for tensor in tensors:
        # The processes exchange it where the model is: that is where their backend can.
        device = tensor.device
        plain = tensor.detach().contiguous().cpu()
        digest.update(f"{tuple(plain.shape)}{plain.dtype}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    mine = torch.tensor(list(digest.digest()), dtype=torch.int32, device=device)
    first = mine.clone()
    dist.broadcast(first, group=group, group_src=0)
    differ = (mine != first).any().to(torch.int32)
    dist.all_reduce(differ, group=group)
    if int(differ):
        raise ModelError(
            f"{what} must be the same on every process, but {int(differ)} of {dist.get_world_size(group)} processes "
            "have others than process 0. Sparsify from the same weights and seed, or load the same checkpoint, first."
        )
