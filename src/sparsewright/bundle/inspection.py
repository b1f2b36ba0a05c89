"""`inspect`: what a bundle holds, from its header alone; no tensor is read."""

import os
from dataclasses import asdict, dataclass
from typing import Any, final

from ..layouts import layouts
from .manifest import VALUE_TYPES, Manifest
from .reader import BundleReader, plane_name


@final
@dataclass(frozen=True)
class BundleRow:
    """One stored weight or tensor.

    Attributes:
        name: layer name of a sparse weight, state name of any other tensor.
        shape: of the weight `(out, in)`, or of the tensor.
        pattern: text; `dense` for plain tensors.
        layout: layout that wrote the planes; empty for plain tensors.
        dtype: stored dtype of the values (`fp16`, or a safetensors name for plain tensors).
        size_bytes: bytes in the file.
        theoretical_bytes: the layout's bound: that of the pattern, and scales where there are any (plain tensors: their
            bytes).
    """

    name: str
    shape: tuple[int, ...]
    pattern: str
    layout: str
    dtype: str
    size_bytes: int
    theoretical_bytes: float


@final
@dataclass(frozen=True)
class BundleInfo:
    """What `inspect` found.

    Attributes:
        path: the file.
        size_bytes: of the whole file.
        manifest: everything the file says of itself.
        rows: sparse weights of all levels, then plain tensors.
        dense_fp32_bytes: what all weights would take dense in float32.
    """

    path: str
    size_bytes: int
    manifest: Manifest
    rows: tuple[BundleRow, ...]
    dense_fp32_bytes: int

    @property
    def share_of_dense(self) -> float:
        """File bytes over dense float32 bytes."""
        return self.size_bytes / max(1, self.dense_fp32_bytes)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": self.path,
            "size_bytes": self.size_bytes,
            "dense_fp32_bytes": self.dense_fp32_bytes,
            "content_digest": self.manifest.content_digest,
            "rows": [asdict(row) for row in self.rows],
            "manifest": self.manifest.to_data(),
        }

    def __str__(self) -> str:
        model = self.manifest.model
        lines = [
            f"{self.path}: {self.size_bytes:,} bytes, {self.share_of_dense:.1%} of dense fp32",
            f"{model.family}, {model.library} {model.architecture}" + (f" from {model.source}" if model.source else ""),
            f"written by {self.manifest.producer}, levels: {', '.join(level.name for level in self.manifest.levels)}",
        ]
        width = max((len(row.name) for row in self.rows), default=0)
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            lines.append(f"{row.name:{width}}  {shape:>14}  {row.pattern:>9}  {row.dtype:>5}  {row.size_bytes:>12,}")
        return "\n".join(lines)


def inspect(path: str | os.PathLike[str]) -> BundleInfo:
    """Read header and manifest of a bundle.

    Raises:
        FileError: it cannot be read.
        BundleError: header or manifest are damaged or of another version.
    """
    with BundleReader(path) as reader:
        rows = []
        dense = 0
        entries = reader.header.entries
        for level in reader.manifest.levels:
            for layer, record in level.layers.items():
                stored = sum(entries[plane_name(layer, level.name, plane)].size_bytes for plane in record.planes)
                bits = VALUE_TYPES[record.value_dtype].itemsize * 8
                bound = layouts.get(record.layout).expected_bytes(record.pattern, record.shape, bits)
                rows.append(
                    BundleRow(
                        layer, record.shape, str(record.pattern), record.layout, record.value_dtype, stored, bound
                    )
                )
                dense += 4 * record.shape[0] * record.shape[1]
        for name, entry in reader.plain_entries.items():
            rows.append(BundleRow(name, entry.shape, "dense", "", entry.dtype, entry.size_bytes, entry.size_bytes))
            wider = {"F16": 2, "BF16": 2}.get(entry.dtype, 1)
            dense += wider * entry.size_bytes
        return BundleInfo(str(reader.path), reader.size_bytes, reader.manifest, tuple(rows), dense)
