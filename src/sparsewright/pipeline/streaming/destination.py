"""Where a streamed model is written: files of their full size from the start, and a record of the parts that are whole.

Everything lies in a folder of its own beside the goal until the last part is there; then one rename makes the goal. A
part counts once its bytes are on the disk and the record names their sha256; all else is done again.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ...bundle.header import DTYPE_NAMES, DTYPES, Header, TensorEntry, header_bytes
from ...bundle.save import raw_bytes
from ...core import FileError, atomic_write, file_error, flush_folder, read_json, require_finite, write_json, write_text
from .source import INDEX, SINGLE, StoredTensors

RECORD = "sparsify.json"
PLAN, CONFIG = "plan.json", "config.json"
_VERSION = 1

Row = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, dtype and shape of a tensor."""


@final
@dataclass(eq=False)
class Destination:
    """The files under way.

    Attributes:
        goal: the file (`.safetensors`) or folder that will be there at the end.
        folder: where everything lies until then.
        stored: the files, to read back from.
        settings: what the answer depends on; a run that goes on must have the same.
        parts: part -> its record, of all that are whole.
    """

    goal: Path
    folder: Path
    stored: StoredTensors
    settings: Mapping[str, str]
    parts: dict[str, Any] = field(default_factory=dict)
    _written: dict[str, str] = field(default_factory=dict)

    def is_whole(self, part: str, names: Sequence[str]) -> bool:
        """Whether a part was finished before, and its bytes are still those that were written."""
        known = self.parts.get(part)
        if known is None or set(known["tensors"]) != set(names):
            return False
        for name, digest in known["tensors"].items():
            found = hashlib.sha256()
            for piece in self.stored.pieces(name):
                found.update(raw_bytes(piece, name))
            if found.hexdigest() != digest:
                return False
        return True

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor to its place; it counts when its part is committed.

        Raises:
            FileError: the disk is full or went away; what is committed stays.
        """
        file, entry = self.stored.places[name]
        assert tuple(tensor.shape) == entry.shape
        assert DTYPE_NAMES[tensor.dtype] == entry.dtype
        rest = raw_bytes(tensor, name) if tensor.numel() else memoryview(b"")
        self._written[name] = hashlib.sha256(rest).hexdigest()
        self._write_at(file, self.stored.files[file].data_start + entry.start, rest)

    def copy(self, name: str, source: StoredTensors) -> None:
        """Copy a tensor of the source, cast to the dtype it is written in, a few megabytes at a time.

        Raises:
            NumericError: a value is NaN or infinite; names tensor and position.
            FileError: see `write`, or the source cannot be read.
        """
        file, entry = self.stored.places[name]
        position = self.stored.files[file].data_start + entry.start
        found = hashlib.sha256()
        for piece in source.pieces(name):
            if piece.is_floating_point() and not bool(torch.isfinite(piece).all()):
                require_finite(source.read(name), f"tensor {name}")
            rest = raw_bytes(piece.to(DTYPES[entry.dtype]), name)
            found.update(rest)
            self._write_at(file, position, rest)
            position += rest.nbytes
        self._written[name] = found.hexdigest()

    def commit(self, part: str, names: Sequence[str], layers: Mapping[str, Any]) -> None:
        """Flush a part to the disk, then say so in the record.

        Raises:
            FileError: see `write`.
        """
        try:
            for file in {self.stored.places[name][0] for name in names}:
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
        except OSError as error:
            raise file_error(error, self.goal) from error
        self.parts[part] = {"tensors": {name: self._written[name] for name in names}, "layers": dict(layers)}
        self._write_record()

    def finish(self, plan: str, beside: Path | None, masked: Mapping[str, Any]) -> None:
        """Make the goal appear, whole.

        Args:
            plan: JSON text that is kept with the weights.
            beside: folder whose other files (config, tokenizer) belong to the model; None for a plain model.
            masked: layer -> shape of its mask, for transformers' config.
        """
        try:
            if self.goal.suffix == ".safetensors":
                write_text(self.goal.with_suffix(".plan.json"), plan)
                next(iter(self.stored.files)).replace(self.goal)
                flush_folder(self.goal.parent)
                shutil.rmtree(self.folder)
                return
            write_text(self.folder / PLAN, plan)
            self._write_index()
            if beside is not None:
                _copy_others(beside, self.folder, masked, self.stored)
            self.folder.replace(self.goal)
            flush_folder(self.goal.parent)
        except OSError as error:
            raise file_error(error, self.goal) from error

    def _write_record(self) -> None:
        record = {"version": _VERSION, "settings": dict(self.settings), "parts": self.parts}
        write_json(self.folder / RECORD, record)

    def _write_index(self) -> None:
        if len(self.stored.files) == 1:
            return
        size = sum(entry.size_bytes for _, entry in self.stored.places.values())
        table = {name: file.name for name, (file, _) in self.stored.places.items()}
        write_json(self.folder / INDEX, {"metadata": {"total_size": size}, "weight_map": table})

    def _write_at(self, file: Path, position: int, rest: memoryview) -> None:
        try:
            with file.open("rb+", buffering=0) as stream:
                while rest:
                    count = os.pwrite(stream.fileno(), rest, position)
                    rest, position = rest[count:], position + count
        except OSError as error:
            raise file_error(error, self.goal) from error


@contextmanager
def open_destination(
    goal: Path, files: Mapping[str, Sequence[Row]], settings: Mapping[str, str], resume: bool
) -> Iterator[Destination]:
    """Begin a run, or go on with the one that was interrupted.

    Args:
        goal: must not exist.
        files: file name -> its tensors.
        settings: what the answer depends on, each value a short text.
        resume: False throws away what an earlier run left.

    Raises:
        FileError: the goal exists; what was left belongs to a run with other settings, or to one that is still at work;
            the disk is full or read-only.
    """
    if goal.exists():
        raise FileError(f"{goal} exists already: it is finished, or another model. Delete it, or name another goal.")
    folder = goal.with_name(f".{goal.name}.unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise file_error(error, goal) from error
    try:
        _lock(descriptor, folder)
        found = _begin(goal, folder, files, settings, resume)
        try:
            yield found
        except BaseException:
            if not found.parts:
                # Nothing to go on from: it would only take the room of a whole model.
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Keep others out of the folder until the descriptor is closed, however that comes about."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileError(f"Another process is at work in {folder}. Wait for it, or name another goal.") from error


def _begin(
    goal: Path, folder: Path, files: Mapping[str, Sequence[Row]], settings: Mapping[str, str], resume: bool
) -> Destination:
    if not resume:
        for file in folder.iterdir():
            file.unlink()
    for file in folder.glob(".*.part"):
        # A text or a copy that the end of an earlier run cut short.
        file.unlink()
    fresh = not (folder / RECORD).is_file()
    parts = {} if fresh else _parts_of(folder / RECORD, settings)
    headers: dict[Path, Header] = {}
    try:
        for name, rows in files.items():
            headers[folder / name] = _allocate(folder / name, rows)
    except OSError as error:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise file_error(error, goal) from error
    places = {name: (file, entry) for file, header in headers.items() for name, entry in header.entries.items()}
    found = Destination(goal, folder, StoredTensors(folder, headers, places), settings, parts)
    if fresh:
        found._write_record()
    return found


def file_names(goal: Path, source: StoredTensors) -> dict[Path, str]:
    """Source file -> name of the file that takes its tensors: one for a file, the same shards for a folder."""
    if goal.suffix == ".safetensors" or len(source.files) == 1:
        return dict.fromkeys(source.files, SINGLE)
    return {file: file.name for file in source.files}


def _allocate(file: Path, rows: Sequence[Row]) -> Header:
    """A file of its full size with its header, unless it is there: a full disk shows before the work, not after."""
    entries: dict[str, TensorEntry] = {}
    position = 0
    # Wide types first, so that every tensor begins at a multiple of its own size; the same order in every run.
    for name, dtype, shape in sorted(rows, key=lambda row: -row[1].itemsize):
        size = dtype.itemsize * torch.Size(shape).numel()
        entries[name] = TensorEntry(name, DTYPE_NAMES[dtype], shape, position, position + size)
        position += size
    head = header_bytes(entries, {"format": "pt"})
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.fstat(descriptor).st_size != len(head) + position or os.pread(descriptor, len(head), 0) != head:
            os.ftruncate(descriptor, 0)
            if sys.platform == "linux":
                os.posix_fallocate(descriptor, 0, len(head) + position)
            else:
                os.ftruncate(descriptor, len(head) + position)
            os.pwrite(descriptor, head, 0)
    finally:
        os.close(descriptor)
    return Header(entries, {"format": "pt"}, len(head))


def _parts_of(record: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    data: Any = read_json(record)
    known: Any = data.get("settings") if isinstance(data, dict) else None
    if not isinstance(known, dict) or data.get("version") != _VERSION or not isinstance(data.get("parts"), dict):
        raise FileError(f"{record.parent} was not left by this release. Delete it, or pass resume=False.")
    others = sorted(key for key in {*settings, *known} if settings.get(key) != known.get(key))
    if others:
        raise FileError(
            f"{record.parent} was left by a run with another {' and another '.join(others)}. Run that one again, or "
            "begin anew with resume=False."
        )
    return dict(data["parts"])


def _copy_others(beside: Path, folder: Path, masked: Mapping[str, Any], stored: StoredTensors) -> None:
    """Config, tokenizer and the like; not the weights in whatever form."""
    weights = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")
    made_here = {RECORD, PLAN, INDEX, CONFIG, *(file.name for file in stored.files)}
    for file in sorted(beside.iterdir()):
        if file.is_file() and not file.name.endswith(weights) and file.name not in made_here:
            # Anew each time: what an interrupted run left may be half a file.
            with atomic_write(folder / file.name) as temporary:
                shutil.copyfile(file, temporary)
    config = read_json(beside / CONFIG)
    dtypes = {entry.dtype for name, (_, entry) in stored.places.items() if not name.endswith("weight_mask")}
    dtype = {"F32": "torch.float32", "BF16": "torch.bfloat16", "F16": "torch.float16"}.get(min(dtypes), "")
    config["quantization_config"] = {
        "quant_method": "sparsewright",
        "version": 1,
        "layers": {},
        "masked": dict(masked),
        "shared": {},
        "dtype": dtype,
    }
    write_json(folder / CONFIG, config)
