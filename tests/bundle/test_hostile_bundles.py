"""A damaged or hostile file is refused in one sentence; it never runs anything and never asks for much memory."""

import hashlib
import json
import pickle
import random
import re
import resource
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_models import TwoLayers, pack_layer
from safetensors.torch import save_file

from sparsewright.bundle import BundleReader, inspect, load, save, verify
from sparsewright.bundle.header import TensorEntry, header_bytes, table_digest
from sparsewright.core import BundleError, FileError

Change = Callable[[dict[str, Any], dict[str, Any]], None]


def forge(path: Path, change: Change, table: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Rewrite manifest and sha256 sums as an attacker would, so that only the content can give the file away.

    Args:
        path: a good bundle.
        change: gets the manifest and a mapping of tensor name -> bytearray, and changes both.
        table: changes the raw header before it is written.
    """
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__")
    manifest = json.loads(metadata["sparsewright"])
    data = {name: bytearray(raw[8 + length :][slice(*row["data_offsets"])]) for name, row in header.items()}
    change(manifest, data)
    for name, content in data.items():
        if name in manifest["tensors"]:
            manifest["tensors"][name] = hashlib.sha256(content).hexdigest()
    if table is not None:
        table(header)
    entries = {
        name: TensorEntry(name, row["dtype"], tuple(row["shape"]), *row["data_offsets"]) for name, row in header.items()
    }
    text = json.dumps(manifest)
    told = {"format": "pt", "sparsewright": text, "sparsewright.sha256": table_digest(entries, text)}
    forged = path.with_name("forged.safetensors")
    forged.write_bytes(header_bytes(entries, told) + b"".join(bytes(data[name]) for name in header))
    return forged


def refused(path: Path, match: str) -> None:
    report = verify(path)
    assert not report.ok
    assert any(re.search(match, problem) for problem in report.problems), report.problems
    assert all("\n" not in problem and len(problem) < 600 for problem in report.problems)
    with pytest.raises(BundleError):
        load(path, TwoLayers())


def plan_of(manifest: dict[str, Any], layer: str = "first") -> dict[str, Any]:
    record: dict[str, Any] = manifest["levels"][0]["plan"][layer]
    return record


def test_the_forger_of_these_tests_makes_good_files(bundle: Path) -> None:
    assert verify(forge(bundle, lambda manifest, data: None)).problems == ()


def test_a_good_bundle_passes(bundle: Path) -> None:
    report = verify(bundle)
    assert report.ok
    assert (report.layers, report.size_bytes) == (2, bundle.stat().st_size)
    assert report.tensors == len(inspect(bundle).manifest.tensors)


def test_a_file_cut_anywhere_is_refused(bundle: Path) -> None:
    raw = bundle.read_bytes()
    cut = bundle.with_name("cut.safetensors")
    places = set(range(0, 200, 7)) | set(range(0, len(raw), 499)) | set(range(len(raw) - 70, len(raw)))
    for place in sorted(places):
        cut.write_bytes(raw[:place])
        report = verify(cut)
        assert len(report.problems) == 1
        with pytest.raises(BundleError):
            load(cut, TwoLayers())


def test_bytes_behind_the_end_are_refused(bundle: Path) -> None:
    bundle.write_bytes(bundle.read_bytes() + b"\0")
    refused(bundle, "the file at")


def test_every_flipped_byte_is_found_or_harmless(bundle: Path) -> None:
    raw = bundle.read_bytes()
    good = inspect(bundle).manifest
    draw = random.Random(0)
    length = 8 + struct.unpack("<Q", raw[:8])[0]
    places = list(range(8)) + draw.sample(range(8, length), 400) + draw.sample(range(length, len(raw)), 200)
    flipped = bundle.with_name("flipped.safetensors")
    for place in places:
        changed = bytearray(raw)
        changed[place] ^= 1 << draw.randrange(8) if draw.random() < 0.5 else draw.randrange(1, 256)
        flipped.write_bytes(changed)
        if verify(flipped).ok:
            # Blanks that became other blanks: nothing that is read has changed.
            assert changed[place] in b"\t\n\r "
            assert inspect(flipped).manifest == good


def test_load_compares_the_sums_of_every_tensor(bundle: Path) -> None:
    raw = bytearray(bundle.read_bytes())
    raw[-1] ^= 1
    bundle.write_bytes(raw)
    with pytest.raises(BundleError, match="sha256 differs"):
        load(bundle, TwoLayers())


@pytest.mark.parametrize("kept, words", [(0, "it is empty"), (3, "it ends after 3 bytes, before its header")])
def test_a_file_that_was_hardly_begun_says_so(bundle: Path, kept: int, words: str) -> None:
    bundle.write_bytes(bundle.read_bytes()[:kept])
    refused(bundle, f"cannot be used as a bundle: {words}")
    assert words in str(verify(bundle).problems)


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_beyond_the_file_is_refused_without_allocating(bundle: Path, length: int) -> None:
    raw = bundle.read_bytes()
    bundle.write_bytes(struct.pack("<Q", length) + raw[8:])
    tracemalloc.start()
    refused(bundle, "header says it has")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}',
        b'{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}',
        b"[" * 100_000,
        b"[1,2]",
        b'{"a":NaN}',
        b'{"__metadata__":{"format":1}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}}',
        b'{"a":{"dtype":"F8","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1099511627777,0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}',
        b"\xff\xfe{}",
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(path, "cannot be used as a bundle")


def test_a_plain_safetensors_file_and_a_pickle_are_told_apart(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "plain.safetensors")
    refused(tmp_path / "plain.safetensors", "without a sparsewright manifest")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    refused(tmp_path / "pickle", "cannot be used as a bundle")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (verify, inspect, load):
        with pytest.raises(FileError, match="nowhere"):
            read(tmp_path / "nowhere.safetensors")


MANIFEST_ATTACKS: dict[str, Change] = {
    "version": lambda m, d: m.update(version=2),
    "version text": lambda m, d: m.update(version="1"),
    "version true": lambda m, d: m.update(version=True),
    "format": lambda m, d: m.update(format="other"),
    "unknown field": lambda m, d: m.update(run="rm"),
    "missing field": lambda m, d: m.pop("aliases"),
    "no levels": lambda m, d: m.update(levels=[]),
    "level named L0": lambda m, d: m["levels"][0].update(name="L0"),
    "level named twice": lambda m, d: m["levels"].append(m["levels"][0]),
    "pattern": lambda m, d: plan_of(m).update(pattern="os.system"),
    "value dtype": lambda m, d: plan_of(m).update(value_dtype="fp64"),
    "other value dtype": lambda m, d: plan_of(m).update(value_dtype="fp16"),
    "a list for a value type": lambda m, d: plan_of(m).update(value_dtype=["int8"]),
    "a list for a dtype": lambda m, d: plan_of(m).update(dtype=["F32"]),
    "a mapping for a view": lambda m, d: plan_of(m).update(view={}),
    "a list for a run dtype": lambda m, d: plan_of(m).update(run_dtype=[]),
    "a list for a library": lambda m, d: m["model"].update(library=["torch"]),
    "int8 values in a layout of floats": lambda m, d: plan_of(m).update(value_dtype="int8"),
    "seen as int": lambda m, d: plan_of(m).update(dtype="I32"),
    "unknown layout": lambda m, d: plan_of(m).update(layout="os"),
    "other layout": lambda m, d: plan_of(m).update(layout="bitmask"),
    "negative shape": lambda m, d: plan_of(m).update(shape=[-128, 64]),
    "absurd shape": lambda m, d: plan_of(m).update(shape=[2**31, 2**31]),
    "large shape": lambda m, d: plan_of(m).update(shape=[2**20, 2**20]),
    "large sparse shape": lambda m, d: plan_of(m).update(shape=[2**20, 2**20], pattern="0.0000001%"),
    "unknown view": lambda m, d: plan_of(m).update(view="pickle"),
    "contradicting parameter": lambda m, d: plan_of(m).update(view="conv2d", parameter_shape=[128, 63, 1, 1]),
    "no planes": lambda m, d: plan_of(m).update(planes=[]),
    "lacking plane": lambda m, d: plan_of(m).update(planes=["values"]),
    "extra plane": lambda m, d: plan_of(m).update(planes=["values", "index", "more"]),
    "layer not in the file": lambda m, d: m["levels"][0]["plan"].update(ghost=plan_of(m)),
    "tensor not in the manifest": lambda m, d: m["tensors"].pop("embed.weight"),
    "tensor not in the file": lambda m, d: m["tensors"].update(ghost="0" * 64),
    "sum of another form": lambda m, d: m["tensors"].update(ghost="0" * 63),
    "alias to nothing": lambda m, d: m["aliases"].update(other="ghost"),
    "alias of a tensor": lambda m, d: m["aliases"].update({"embed.weight": "second.bias"}),
    "dtype record of nothing": lambda m, d: m["dense_dtype"].update(ghost={"stored": "F16", "original": "F32"}),
    "dtype record that lies": lambda m, d: m["dense_dtype"].update(
        {"embed.weight": {"stored": "F32", "original": "F16"}}
    ),
    "library": lambda m, d: m["model"].update(library="os"),
    "deep config": lambda m, d: m["model"].update(config={"a": [[[[[[[[[[1]]]]]]]]]]}),
    "config not a mapping": lambda m, d: m["model"].update(config=[1]),
}


@pytest.mark.parametrize("attack", MANIFEST_ATTACKS)
def test_a_forged_manifest_is_refused(bundle: Path, attack: str) -> None:
    path = forge(bundle, MANIFEST_ATTACKS[attack])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "bundle|manifest|model|version")
    # Kilobytes: what the largest claims ask for would be gigabytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def overwrite(name: str, start: int, content: bytes) -> Change:
    def change(manifest: dict[str, Any], data: dict[str, Any]) -> None:
        data[name][start : start + len(content)] = content

    return change


def test_positions_that_do_not_rise_are_refused(bundle: Path) -> None:
    refused(forge(bundle, overwrite("first.weight.L1.index", 0, b"\0\0\0")), "'first' do not decode")


def test_more_columns_than_the_pattern_allows_are_refused(bundle: Path) -> None:
    refused(forge(bundle, overwrite("second.weight.L1.index", 1, b"\xff" * 40)), "'second' do not decode")


def test_kept_values_that_are_not_finite_are_refused(bundle: Path) -> None:
    infinite = struct.pack("<f", float("inf"))
    refused(forge(bundle, overwrite("first.weight.L1.values", 0, infinite)), "'first' do not decode")


def test_a_plane_of_another_dtype_or_length_is_refused(bundle: Path) -> None:
    def as_bytes(header: dict[str, Any]) -> None:
        row = header["first.weight.L1.values"]
        row.update(dtype="U8", shape=[row["data_offsets"][1] - row["data_offsets"][0]])

    refused(forge(bundle, lambda m, d: None, as_bytes), "'first' do not decode")


def test_a_pad_that_hides_something_is_refused(bundle: Path) -> None:
    pad = next(name for name in BundleReader(bundle).header.entries if name.startswith("__pad__"))
    path = forge(bundle, overwrite(pad, 0, b"x"))
    assert any("is not empty" in problem for problem in verify(path).problems)


def test_a_shape_of_another_model_is_refused_on_load(bundle: Path) -> None:
    # The turned shape holds as many weights, so only the model can tell.
    path = forge(bundle, lambda manifest, data: plan_of(manifest).update(shape=[64, 128]))
    with pytest.raises(BundleError, match="does not fit the model"):
        load(path, TwoLayers())


@pytest.fixture
def int8_bundle(tmp_path: Path) -> Path:
    """A good bundle with an int8 layer, `first`."""
    torch.manual_seed(0)
    model = TwoLayers().eval()
    pack_layer(model.first, "2:4x4", torch.int8)
    path = tmp_path / "int8.safetensors"
    save(model, path)
    return path


def test_the_int8_bundle_of_these_tests_is_good(int8_bundle: Path) -> None:
    assert verify(forge(int8_bundle, lambda manifest, data: None)).problems == ()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 3e38])
def test_scales_that_no_packing_writes_are_refused(int8_bundle: Path, scale: float) -> None:
    def change(manifest: dict[str, Any], data: dict[str, Any]) -> None:
        data["first.weight.L1.scale"][4:8] = struct.pack("<f", scale)

    refused(forge(int8_bundle, change), "scale|NaN or infinity")


def test_int8_values_below_their_range_are_refused(int8_bundle: Path) -> None:
    def change(manifest: dict[str, Any], data: dict[str, Any]) -> None:
        data["first.weight.L1.values"][0] = 0x80

    refused(forge(int8_bundle, change), "-128")


def test_int8_planes_under_another_layout_or_type_are_refused(int8_bundle: Path) -> None:
    refused(forge(int8_bundle, lambda m, d: plan_of(m).update(layout="vector", planes=["values", "index"])), "int8")
    refused(forge(int8_bundle, lambda m, d: plan_of(m).update(value_dtype="fp32")), "fp32")
