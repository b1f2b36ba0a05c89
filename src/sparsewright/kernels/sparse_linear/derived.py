"""What is computed once from frozen tensors and kept as long as they live."""

from collections.abc import Callable
from typing import Generic, TypeVar, final

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Derived = TypeVar("Derived")


@final
class DerivedCache(Generic[Derived]):
    """Results by the memory of the tensors they come from, not by the Python objects: autograd and compiled graphs hand
    the same memory over in new ones. An entry is renewed when a tensor was written to, and leaves with its memory."""

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], tuple[tuple[StorageWeakRef, ...], tuple[int, ...], Derived]] = {}

    def __len__(self) -> int:
        self._drop_expired()
        return len(self._entries)

    def get(self, tensors: tuple[Tensor, ...], make: Callable[[], Derived]) -> Derived:
        """The result for these tensors, kept or made now."""
        key = tuple(
            part
            for tensor in tensors
            for part in (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.dtype, *tensor.shape)
        )
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        found = self._entries.get(key)
        # A weak reference keeps its address taken: what is found under it and lives is the same memory.
        if found is not None and found[1] == versions and not any(ref.expired() for ref in found[0]):
            return found[2]
        self._drop_expired()
        made = make()
        refs = tuple(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors)
        self._entries[key] = (refs, versions, made)
        return made

    def _drop_expired(self) -> None:
        gone = [key for key, (refs, _, _) in self._entries.items() if any(ref.expired() for ref in refs)]
        for key in gone:
            del self._entries[key]
