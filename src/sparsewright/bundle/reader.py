"""An open bundle: header and manifest checked against each other, tensors read only when asked for."""

import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import final

import torch
from torch import Tensor

from ..core import BundleError, FileError, SparsewrightError, file_error
from ..layouts import PackedWeight, layouts
from .header import DTYPES, PAD_PREFIX, Header, TensorEntry, damaged, read_header, table_digest
from .manifest import VALUE_TYPES, Level, Manifest, PackedLayer, read_manifest

MANIFEST_KEY = "sparsewright"
DIGEST_KEY = "sparsewright.sha256"

# A layer of up to 64 million weights may be as sparse as it likes; beyond, its file bytes must be in proportion, so
# that a small file cannot ask for much memory.
_FREE_WEIGHTS = 2**26
_WEIGHTS_PER_BYTE = 1024


def plane_name(layer: str, level: str, plane: str) -> str:
    """Tensor name of one plane, for instance `encoder.fc1.weight.L1.values`."""
    return f"{layer}.weight.{level}.{plane}" if layer else f"weight.{level}.{plane}"


@final
class BundleReader:
    """Reads one bundle; use it as a context manager.

    Args:
        path: the file.

    Raises:
        FileError: it cannot be read.
        BundleError: header or manifest are damaged, hostile, of another version, or contradict each other.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            # Closed by __exit__: the mapping and the file live as long as the reader.
            self._stream = self.path.open("rb")
        except OSError as error:
            raise FileError(f"{self.path} cannot be read: {error.strerror or error}. Check the path.") from error
        try:
            self.header: Header = read_header(self._stream, self.path)
            self.manifest: Manifest = _manifest_of(self.header, self.path)
            self.size_bytes = os.fstat(self._stream.fileno()).st_size
        except BaseException:
            self._stream.close()
            raise
        self._map: mmap.mmap | None = None

    def __enter__(self) -> "BundleReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Tensors that still look into the mapping keep it alive by themselves.
        self._map = None
        self._stream.close()

    @property
    def plain_entries(self) -> dict[str, TensorEntry]:
        """Tensors that are neither planes nor pads, in file order."""
        planes = {plane_name(layer, level.name, p) for level, layer, rec in self._records() for p in rec.planes}
        return {
            name: entry
            for name, entry in self.header.entries.items()
            if name in self.manifest.tensors and name not in planes
        }

    def _records(self) -> list[tuple[Level, str, PackedLayer]]:
        return [(level, name, record) for level in self.manifest.levels for name, record in level.layers.items()]

    def level(self, name: str | None) -> Level:
        """The level of that name; None: the densest.

        Raises:
            BundleError: there is none of that name.
        """
        if name is None:
            return self.manifest.levels[-1]
        for level in self.manifest.levels:
            if level.name == name:
                return level
        raise BundleError(
            f"{self.path} has the levels {', '.join(each.name for each in self.manifest.levels)}, not {name!r}."
        )

    def shapes(self, level: Level) -> dict[str, tuple[int, ...]]:
        """State names and shapes of a level, tied names included."""
        found = {name: entry.shape for name, entry in self.plain_entries.items()}
        for layer, record in level.layers.items():
            found[f"{layer}.weight" if layer else "weight"] = record.parameter_shape
        return found | {name: found[goal] for name, goal in self.manifest.aliases.items() if goal in found}

    def tensor(self, name: str) -> Tensor:
        """One tensor, a private view of the file: nothing is read before it is used. Copy it to keep it."""
        entry = self.header.entries[name]
        if entry.size_bytes == 0:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        start = self.header.data_start + entry.start
        bytes_ = torch.frombuffer(self._mapping(), dtype=torch.uint8, count=entry.size_bytes, offset=start)
        if entry.dtype == "BOOL" and bool((bytes_ > 1).any()):
            raise damaged(self.path, f"the tensor {name!r} holds bytes that are neither true nor false")
        if start % DTYPES[entry.dtype].itemsize:
            bytes_ = bytes_.clone()
        return bytes_.view(DTYPES[entry.dtype]).view(entry.shape)

    def digest(self, name: str) -> str:
        """Sha256 hex of the stored bytes."""
        entry = self.header.entries[name]
        start = self.header.data_start + entry.start
        with memoryview(self._mapping()) as whole, whole[start : start + entry.size_bytes] as part:
            return hashlib.sha256(part).hexdigest()

    def check_digest(self, name: str) -> None:
        """Raise BundleError unless the stored bytes are those that were saved."""
        if self.digest(name) != self.manifest.tensors[name]:
            raise damaged(self.path, f"the bytes of tensor {name!r} are not those that were saved (sha256 differs)")

    def packed(self, level: Level, layer: str) -> PackedWeight:
        """Rebuild the packed weight of a layer from its planes; the layout checks everything.

        Raises:
            BundleError: planes, pattern and shape do not belong together.
        """
        record = level.layers[layer]
        planes = {plane: self.tensor(plane_name(layer, level.name, plane)) for plane in record.planes}
        self._check_proportion(level, layer, record)
        try:
            layout = layouts.get(record.layout)
            if VALUE_TYPES[record.value_dtype] not in layout.value_dtypes:
                raise BundleError(f"the layout {record.layout} holds no {record.value_dtype} values")
            stored = layout.from_storage(planes, record.pattern, record.shape, VALUE_TYPES[record.value_dtype])
            return stored.with_values(VALUE_TYPES[record.run_dtype or record.value_dtype])
        except (SparsewrightError, RuntimeError, ValueError, IndexError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise damaged(self.path, f"the planes of layer {layer!r} do not decode ({reason})") from error

    def _check_proportion(self, level: Level, layer: str, record: PackedLayer) -> None:
        weights = record.shape[0] * record.shape[1]
        stored = sum(self.header.entries[plane_name(layer, level.name, plane)].size_bytes for plane in record.planes)
        if weights > max(_FREE_WEIGHTS, _WEIGHTS_PER_BYTE * stored):
            raise damaged(self.path, f"the layer {layer!r} claims {weights} weights in {stored} bytes")

    def _mapping(self) -> mmap.mmap:
        if self._map is None:
            try:
                # Copy on write: tensors may be written to without touching the file.
                self._map = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise file_error(error if isinstance(error, OSError) else OSError(str(error)), self.path) from error
        return self._map


def _manifest_of(header: Header, path: Path) -> Manifest:
    if MANIFEST_KEY not in header.metadata:
        raise damaged(path, "it is a safetensors file without a sparsewright manifest")
    if set(header.metadata) != {"format", MANIFEST_KEY, DIGEST_KEY} or header.metadata["format"] != "pt":
        raise damaged(path, "its metadata have other fields than a bundle has")
    text = header.metadata[MANIFEST_KEY]
    try:
        manifest = read_manifest(text)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    if table_digest(header.entries, text) != header.metadata[DIGEST_KEY]:
        raise damaged(path, "the header is not the one that was saved (sha256 differs)")
    _check_names(header.entries, manifest, path)
    return manifest


def _check_names(entries: Mapping[str, TensorEntry], manifest: Manifest, path: Path) -> None:
    """The file holds exactly the tensors that the manifest speaks of, each in one role."""
    stored = {name for name in entries if not name.startswith(PAD_PREFIX)}
    for name in entries:
        if name.startswith(PAD_PREFIX) and (entries[name].dtype != "U8" or entries[name].size_bytes >= 64):
            raise damaged(path, f"the pad {name[:80]!r} is too long")
    _same_names(set(manifest.tensors), stored, path)
    planes: set[str] = set()
    weights: set[str] = set()
    for level in manifest.levels:
        for layer, record in level.layers.items():
            planes |= {plane_name(layer, level.name, plane) for plane in record.planes}
            weights.add(f"{layer}.weight" if layer else "weight")
    lost = planes - stored
    if lost:
        raise damaged(path, f"the plane {sorted(lost)[0][:80]!r} is missing")
    names = (stored - planes) | weights
    extra = [name for name in stored - planes if _looks_like_plane(name, weights) or name in weights]
    if extra:
        raise damaged(path, f"the tensor {sorted(extra)[0][:80]!r} belongs to no level")
    for name, goal in manifest.aliases.items():
        if goal not in names or name in names:
            raise damaged(path, f"the tied name {name[:80]!r} has no tensor to share")
    for name, (kept, _) in manifest.dense_dtype.items():
        if name not in stored - planes or entries[name].dtype != kept:
            raise damaged(path, f"the dtype record of {name[:80]!r} contradicts the tensor")


def _same_names(told: set[str], stored: set[str], path: Path) -> None:
    if told - stored:
        raise damaged(path, f"the tensor {sorted(told - stored)[0][:80]!r} is missing")
    if stored - told:
        raise damaged(path, f"the tensor {sorted(stored - told)[0][:80]!r} is not in the manifest")


def _looks_like_plane(name: str, weights: set[str]) -> bool:
    stem, _, _ = name.rpartition(".")
    weight, _, level = stem.rpartition(".")
    return weight in weights and level[:1] == "L" and level[1:].isdigit()
