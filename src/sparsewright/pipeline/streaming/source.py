"""The model on disk: safetensors in one file or in shards, read tensor by tensor into memory of their own.

By `preadv` and not by a mapping, so that what was read counts as ours and can be let go at a known moment.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ...bundle.header import DTYPES, PAD_PREFIX, Header, TensorEntry, read_header
from ...core import BundleError, FileError, file_error, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# Bytes that are hashed or copied at a time.
CHUNK_BYTES = 4 << 20


@final
@dataclass(frozen=True, eq=False)
class StoredTensors:
    """Tensors in safetensors files, by name.

    Attributes:
        path: the file or folder, for messages.
        files: each file with its header, in the order of their names.
        places: tensor name -> file and entry.
    """

    path: Path
    files: Mapping[Path, Header]
    places: Mapping[str, tuple[Path, TensorEntry]]

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype.

        Raises:
            FileError: there is no such tensor.
        """
        return DTYPES[self._place(name)[1].dtype]

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own.

        Raises:
            FileError: there is no such tensor, or the file ends before it does.
        """
        file, entry = self._place(name)
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        read_into(tensor, file, self.files[file].data_start + entry.start, name)
        return tensor

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The values of one tensor in row-major order, flat, a few megabytes at a time."""
        file, entry = self._place(name)
        dtype, start = DTYPES[entry.dtype], self.files[file].data_start
        for first in range(entry.start, entry.stop, CHUNK_BYTES):
            piece = torch.empty(min(CHUNK_BYTES, entry.stop - first) // dtype.itemsize, dtype=dtype)
            read_into(piece, file, start + first, name)
            yield piece

    def fingerprint(self) -> str:
        """Sha256 hex that changes when files are replaced: their headers, sizes and dates, not all their bytes."""
        found = hashlib.sha256()
        for file, header in self.files.items():
            known = file.stat()
            found.update(f"{file.name} {known.st_size} {known.st_mtime_ns} {header.data_start}\n".encode())
            for entry in header.entries.values():
                found.update(f"{entry}\n".encode())
        return found.hexdigest()

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape.

        Raises:
            FileError: there is no such tensor.
        """
        return self._place(name)[1].shape

    def _place(self, name: str) -> tuple[Path, TensorEntry]:
        if name not in self.places:
            raise FileError(
                f"{self.path} holds no tensor {name!r}, which the model needs. Fetch the files again, or give the "
                "model that they were saved from."
            )
        return self.places[name]


def open_stored(path: Path) -> StoredTensors:
    """Read the headers of a safetensors file, or of a folder with `model.safetensors` or its index.

    Raises:
        FileError: nothing there, no safetensors, or a shard is missing.
        BundleError: a header is damaged, or a file shorter or longer than its header says.
    """
    headers: dict[Path, Header] = {}
    places: dict[str, tuple[Path, TensorEntry]] = {}
    for file in _files_of(path):
        try:
            with file.open("rb") as stream:
                headers[file] = read_header(stream, file)
        except OSError as error:
            raise file_error(error, file) from error
        for name, entry in headers[file].entries.items():
            if name in places:
                raise BundleError(f"{path} holds the tensor {name!r} twice. Fetch or save it again.")
            if not name.startswith(PAD_PREFIX):
                places[name] = file, entry
    return StoredTensors(path, headers, places)


def _files_of(path: Path) -> Sequence[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileError(f"There is no file and no folder {path}. Check the path.")
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if not (path / INDEX).is_file():
        raise FileError(f"{path} holds neither {SINGLE} nor {INDEX}. Save the model as safetensors first.")
    index: Any = read_json(path / INDEX)
    table = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise FileError(f"{path / INDEX} does not say which file holds which tensor. Fetch it again.")
    for name in names:
        if not (path / name).is_file():
            raise FileError(f"{path} lacks the shard {name}, which its index names. Fetch it again.")
    return [path / name for name in names]


def read_into(tensor: Tensor, file: Path, position: int, name: str) -> None:
    """Fill a contiguous tensor of the CPU with bytes of a file.

    Raises:
        FileError: the file cannot be read, or ends too early.
    """
    rest = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
    try:
        with file.open("rb", buffering=0) as stream:
            while rest:
                count = os.preadv(stream.fileno(), [rest], position)
                if count == 0:
                    raise FileError(f"{file} ends inside the tensor {name!r}. Fetch it again; nothing was changed.")
                rest, position = rest[count:], position + count
    except OSError as error:
        raise file_error(error, file) from error
