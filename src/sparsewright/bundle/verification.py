"""`verify`: is this file whole, unchanged and decodable? Every byte is looked at."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from ..core import BundleError
from .header import PAD_PREFIX
from .reader import BundleReader


@final
@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        path: the file.
        problems: what is wrong, one sentence each; empty if the file is good.
        tensors: how many tensors were compared with their sha256.
        layers: how many packed layers were decoded and checked against their pattern.
        size_bytes: of the file; 0 where the header could not be read.
        content_digest: sha256 hex of what the manifest says, without `measured`; empty where it could not be read.
    """

    path: str
    problems: tuple[str, ...]
    tensors: int
    layers: int
    size_bytes: int
    content_digest: str

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require(self) -> None:
        """Raise BundleError with the first problem unless the file is good."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise BundleError(f"{self.problems[0]}{more}")


def verify(path: str | os.PathLike[str], progress: Callable[[float], None] | None = None) -> VerifyReport:
    """Check a bundle completely: header, manifest, sizes, sha256 of every tensor, every packed layer.

    Args:
        path: the file.
        progress: called with the share done, 0..1.

    Raises:
        FileError: it cannot be read at all; everything else is a problem in the report.
    """
    try:
        reader = BundleReader(path)
    except BundleError as error:
        return VerifyReport(str(path), (str(error),), 0, 0, 0, "")
    problems = []
    with reader:
        names = list(reader.manifest.tensors)
        layers = [(level, layer) for level in reader.manifest.levels for layer in level.layers]
        steps = max(1, len(names) + len(layers))
        changed = set()
        for number, name in enumerate(names):
            try:
                reader.check_digest(name)
            except BundleError as error:
                problems.append(str(error))
                changed.add(name)
            if progress is not None:
                progress(number / steps)
        problems += _pads(reader)
        for number, (level, layer) in enumerate(layers):
            try:
                reader.packed(level, layer)
            except BundleError as error:
                # Bytes that are known to differ need no second sentence.
                if not any(name.startswith(f"{layer}.weight.{level.name}.") for name in changed):
                    problems.append(str(error))
            if progress is not None:
                progress((len(names) + number) / steps)
        size, digest = reader.size_bytes, reader.manifest.content_digest
    return VerifyReport(str(path), tuple(problems), len(names), len(layers), size, digest)


def _pads(reader: BundleReader) -> list[str]:
    """Pad tensors hold zeros, so that nothing hides there."""
    found = []
    for name in reader.header.entries:
        if name.startswith(PAD_PREFIX) and bool(reader.tensor(name).any()):
            found.append(f"{reader.path} cannot be used as a bundle: the pad {name!r} is not empty. Fetch it again.")
    return found
