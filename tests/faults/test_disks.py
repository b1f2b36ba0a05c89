"""A full disk or a read-only folder: one sentence, exit code 2, nothing half-written; the run goes on afterwards."""

from pathlib import Path

import pytest
from small_disk import Ended, on_small_disk, why_no_mount

pytestmark = pytest.mark.skipif(bool(why_no_mount()), reason=why_no_mount() or "mounting works")

MODEL = "python:small_model:build"
SPARSIFY = ("sparsify", MODEL, "--plan", "2:4", "--out", "sparse.safetensors")
PACK = ("pack", MODEL, "sparse.safetensors", "--force", "--out", "model.safetensors")


STREAM = ("sparsify", "model", "--plan", "2:4", "--stream", "--out", "new")


def is_clean(ended: Ended) -> bool:
    """No traceback, no temporary file left behind."""
    return "Traceback" not in ended.err and not [name for name in ended.files if name.endswith(".part")]


def test_a_disk_too_small_for_the_weights(disk: Path) -> None:
    ended = on_small_disk(disk, "64k", [SPARSIFY])
    assert ended.codes == (2,)
    assert len(ended.sentences) == 1
    assert "No space left on device" in ended.sentences[0]
    assert is_clean(ended)
    assert ended.files == {}


def test_an_earlier_bundle_survives_a_full_disk(disk: Path) -> None:
    # Room for the weights and one bundle, not for a second bundle beside the first.
    ended = on_small_disk(disk, "240k", [SPARSIFY, PACK, (*PACK, "--dense", "fp16"), ("verify", "model.safetensors")])
    assert ended.codes == (0, 0, 2, 0)
    assert "No space left on device" in ended.sentences[0]
    assert is_clean(ended)


def test_a_read_only_folder_is_named(disk: Path) -> None:
    read_only = ("mount", "ro")
    commands = [SPARSIFY, read_only, PACK, ("init", MODEL, "--out", "new.yaml")]
    ended = on_small_disk(disk, "2m", commands)
    assert ended.codes == (0, 0, 2, 2)
    assert "Read-only file system" in ended.sentences[0]
    assert "model.safetensors" in ended.sentences[0]
    assert is_clean(ended)
    assert set(ended.files) == {"sparse.safetensors", "sparse.plan.json"}


def test_a_run_in_a_read_only_folder_stops_at_once(disk: Path, seed: Path) -> None:
    ended = on_small_disk(disk, "2m", [("mount", "ro"), ("run", "recipe.yaml")], seed)
    assert ended.codes == (0, 2)
    assert "Read-only file system" in ended.sentences[0]
    assert set(ended.files) == {"recipe.yaml", "fixed.json"}


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_when_there_is_space(disk: Path, seed: Path) -> None:
    run = ("run", "recipe.yaml")
    ended = on_small_disk(disk, "180k", [run, ("mount", "size=8m"), run, ("verify", "run/model.safetensors")], seed)
    assert ended.codes == (2, 0, 0, 0), ended.err
    assert len(ended.sentences) == 1
    assert "No space left on device" in ended.sentences[0]
    assert is_clean(ended)
    assert {"run/plan.json", "run/results.json", "run/report.html"} <= set(ended.files)


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A folder that holds a model of transformers."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=50
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama" / "model")
    return tmp_path / "llama"


def test_a_model_is_streamed_when_there_is_space_for_it(disk: Path, llama_folder: Path) -> None:
    again = ("mount", "size=8m")
    ended = on_small_disk(disk, "300k", [STREAM, again, ("mount", "ro"), STREAM, ("mount", "rw"), STREAM], llama_folder)
    assert ended.codes == (2, 0, 0, 2, 0, 0), ended.err
    full, read_only = ended.sentences
    assert "No space left on device" in full
    assert "Read-only file system" in read_only
    assert is_clean(ended)
    # A full disk leaves nothing behind, because it shows before the first block.
    assert {name.split("/")[0] for name in ended.files} == {"model", "new"}
    assert "new/model.safetensors" in ended.files
