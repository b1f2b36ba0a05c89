"""The outer file: a safetensors header written and read by ourselves, aligned and in our own order.

The stock writer sorts by dtype and name and aligns nothing; the stock reader accepts any order as long as the
tensors cover the file without gaps. So the header is padded with blanks to 64 bytes and a U8 pad tensor fills the
space behind a tensor whose length is no multiple of 64. Our reader is stricter than the stock one: it refuses
duplicate keys, gaps, overlaps, foreign dtypes and absurd sizes before it allocates anything.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import torch

from ..core import BundleError, file_error

ALIGNMENT = 64
PAD_PREFIX = "__pad__."
MAX_HEADER_BYTES = 16 * 1024 * 1024
_MAX_DIMENSION = 2**40
_MAX_RANK = 16

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@final
@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        name: unique in the file.
        dtype: a safetensors dtype name, a key of `DTYPES`.
        shape: dimensions, row-major.
        start, stop: bytes from the end of the header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """Stored bytes."""
        return self.stop - self.start


@final
@dataclass(frozen=True)
class Header:
    """What stands before the data.

    Attributes:
        entries: tensors in file order, pad tensors included.
        metadata: text -> text.
        data_start: byte of the file where the data begin.
    """

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors together."""
        return max((entry.stop for entry in self.entries.values()), default=0)


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, TensorEntry]:
    """Give every tensor its place, in the order given, each start a multiple of 64.

    Args:
        tensors: (name, dtype name, shape).
    """
    entries: dict[str, TensorEntry] = {}
    position = 0
    for name, dtype, shape in tensors:
        short = -position % ALIGNMENT
        if short:
            pad = f"{PAD_PREFIX}{len(entries)}"
            entries[pad] = TensorEntry(pad, "U8", (short,), position, position + short)
            position += short
        size = math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = TensorEntry(name, dtype, shape, position, position + size)
        position += size
    return entries


def header_bytes(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The length word and the JSON header, padded with blanks so that the data begin at a multiple of 64."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    for entry in entries.values():
        table[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [entry.start, entry.stop]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise BundleError(
            f"The header would take {len(text)} bytes, at most {MAX_HEADER_BYTES} are allowed. "
            "Save the model in several files."
        )
    return struct.pack("<Q", len(text)) + text


def table_digest(entries: Mapping[str, TensorEntry], text: str) -> str:
    """Sha256 hex over the table of tensors and `text`, independent of blanks in the header."""
    rows = [[entry.name, entry.dtype, list(entry.shape), entry.start, entry.stop] for entry in entries.values()]
    return hashlib.sha256(f"{json.dumps(rows)}\n{text}".encode()).hexdigest()


def read_header(stream: BinaryIO, path: Path) -> Header:
    """Read and check the header; no tensor data are read.

    Args:
        stream: the file, open for reading in binary mode.
        path: for messages only.

    Raises:
        BundleError: truncated, corrupt or hostile.
    """
    try:
        size = stream.seek(0, 2)
        stream.seek(0)
        word = stream.read(8)
        if len(word) < 8:
            what = "it is empty" if not size else f"it ends after {size} bytes, before its header"
            raise damaged(path, what)
        length = struct.unpack("<Q", word)[0]
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise damaged(path, f"the header says it has {length} bytes, the file has {size}")
        text = stream.read(length)
    except OSError as error:
        raise file_error(error, path) from error
    try:
        table = json.loads(text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"the header is not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise damaged(path, "the header is not a mapping")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "the metadata are not texts")
    entries = _checked_entries(table, path)
    header = Header(entries, metadata, 8 + length)
    if header.data_start + header.data_bytes != size:
        raise damaged(path, f"the tensors end at byte {header.data_start + header.data_bytes}, the file at {size}")
    return header


def damaged(path: Path, what: str) -> BundleError:
    """One sentence on a file that must not be used."""
    return BundleError(f"{path} cannot be used as a bundle: {what}. Fetch or save it again.")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _checked_entries(table: Mapping[str, Any], path: Path) -> dict[str, TensorEntry]:
    entries = []
    for name, row in table.items():
        if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
            raise damaged(path, f"the entry {name[:80]!r} is malformed")
        dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise damaged(path, f"the tensor {name[:80]!r} has the unknown dtype {str(dtype)[:20]!r}")
        if (
            not isinstance(shape, list)
            or len(shape) > _MAX_RANK
            or not all(_is_count(d, _MAX_DIMENSION) for d in shape)
        ):
            raise damaged(path, f"the tensor {name[:80]!r} has an impossible shape")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(o, 2**62) for o in offsets):
            raise damaged(path, f"the tensor {name[:80]!r} has impossible offsets")
        if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
            raise damaged(path, f"the bytes of tensor {name[:80]!r} do not match its shape and dtype")
        entries.append(TensorEntry(name, dtype, tuple(shape), offsets[0], offsets[1]))
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    position = 0
    for entry in entries:
        if entry.start != position:
            raise damaged(path, f"the tensor {entry.name[:80]!r} overlaps another or leaves a gap")
        position = entry.stop
    return {entry.name: entry for entry in entries}
