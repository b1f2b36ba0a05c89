"""Models larger than memory: the bits of `sparsify_`, one block in memory, and nothing lost when it is interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import streamed_model
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from streamed_model import DiesOnce, Tower, digests, llama, llama_batches, tower, tower_batches
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.cli import main
from sparsewright.core import AbstractPattern, LayerStats
from sparsewright.pipeline.session import load_weights
from sparsewright.sparsifiers import AbstractSparsifier, Sparsified, sparsifiers

transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random Llama in several shards."""
    llama().save_pretrained(tmp_path / "model", max_shard_size="40KB")
    return tmp_path / "model"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A plain torch model in one file."""
    save_file(tower().state_dict(), tmp_path / "tower.safetensors")
    return tmp_path / "tower.safetensors"


def child(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`streamed_model.py` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MKL_DISABLE_FAST_MM": "1"}
    command = [sys.executable, streamed_model.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def require_same_state(ours: nn.Module, expected: nn.Module) -> None:
    state, wanted = ours.state_dict(), expected.state_dict()
    assert set(state) == set(wanted)
    assert [name for name in state if not torch.equal(state[name], wanted[name])] == []


@pytest.mark.parametrize("tied", [False, True])
def test_a_streamed_llama_has_the_bits_of_the_one_in_memory(tmp_path: Path, tied: bool) -> None:
    llama(tied=tied).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    plan = {"re:model.*": "2:4"} if tied else {"re:model.*": "2:4", "lm_head": "50%"}
    expected = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    in_memory = sw.sparsify_(expected, plan, method="sparsegpt", data=llama_batches())

    done = sw.sparsify_file(tmp_path / "model", tmp_path / "new", plan, method="sparsegpt", data=llama_batches())

    assert done.plan == in_memory.plan
    assert done.skipped == in_memory.skipped
    assert {name: layer.error for name, layer in done.layers.items()} == {
        name: layer.error for name, layer in in_memory.layers.items()
    }
    sw.register_transformers()
    require_same_state(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "new"), expected)
    assert json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())["weight_map"]


def test_a_streamed_gpt2_with_turned_weights_and_a_tied_head_has_the_bits_of_the_one_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": streamed_model.VOCABULARY, "n_positions": 16}
    config = transformers.GPT2Config(**size, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    expected = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    sw.sparsify_(expected, "2:4", method="wanda", data=llama_batches())
    sw.sparsify_file(tmp_path / "model", tmp_path / "new", "2:4", method="wanda", data=llama_batches())
    sw.register_transformers()
    require_same_state(transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "new"), expected)


def test_a_streamed_plain_model_has_the_bits_of_the_one_in_memory(file: Path, tmp_path: Path) -> None:
    # Three methods, layers before and behind the blocks, a scale that is handed from block to block.
    plan = {
        "first": {"pattern": "2:4", "sparsifier": "sparsegpt"},
        "re:blocks.*(left|right)": {"pattern": "2:4", "sparsifier": "sparsegpt"},
        "re:blocks.[01].down": "50%",
        "blocks.2.down": {"pattern": "4:8", "sparsifier": "magnitude"},
        "last": "25%",
    }
    expected = tower()
    sw.sparsify_(expected, plan, method="wanda", data=tower_batches())

    goal = tmp_path / "new.safetensors"
    sw.sparsify_file(file, goal, plan, model=Tower, method="wanda", data=tower_batches())

    ours = tower()
    load_weights(ours, goal)
    require_same_state(ours, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.plan.json", "new.safetensors", "tower.safetensors"]


def test_a_method_without_data_runs_no_block(file: Path, tmp_path: Path) -> None:
    class Broken(Tower):
        def forward(self, inputs: Tensor) -> Tensor:
            raise AssertionError

    goal = tmp_path / "new.safetensors"
    sw.sparsify_file(file, goal, "2:4", model=Broken)
    expected = tower()
    sw.sparsify_(expected, "2:4")
    ours = tower()
    load_weights(ours, goal)
    require_same_state(ours, expected)


def test_tensors_that_the_model_does_not_know_are_kept(tmp_path: Path) -> None:
    extra = torch.arange(3, dtype=torch.int64)
    save_file({**tower().state_dict(), "positions": extra}, tmp_path / "tower.safetensors")
    sw.sparsify_file(tmp_path / "tower.safetensors", tmp_path / "new.safetensors", "2:4", model=Tower)
    assert torch.equal(load_file(tmp_path / "new.safetensors")["positions"], extra)


class Fickle(nn.Module):
    """Layers that read one tensor in most batches, and two in the others."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, hidden: Tensor) -> Tensor:
        other = hidden if hidden.sum() > 0 else hidden * 2
        return self.left(hidden) + self.right(other)


def fickle() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Fickle(), Fickle()).eval()


def test_layers_that_read_apart_in_some_batch_have_statistics_of_their_own(tmp_path: Path) -> None:
    batches = [torch.rand(9, 16), -torch.rand(9, 16)]
    save_file(fickle().state_dict(), tmp_path / "model.safetensors")
    expected = fickle()
    sw.sparsify_(expected, "2:4", method="sparsegpt", data=batches)
    goal = tmp_path / "new.safetensors"
    sw.sparsify_file(tmp_path / "model.safetensors", goal, "2:4", model=fickle, method="sparsegpt", data=batches)
    ours = fickle()
    load_weights(ours, goal)
    require_same_state(ours, expected)


def test_a_run_killed_in_a_random_block_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    sw.sparsify_file(folder, tmp_path / "whole", "2:4", method="sparsegpt", data=llama_batches())
    # Three blocks of seven layers: not after the last one.
    layers = random.SystemRandom().randrange(8, 21)

    killed = child(folder, tmp_path / "killed", layers)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed").exists()
    solved: list[str] = []
    sw.sparsify_file(
        folder,
        tmp_path / "killed",
        "2:4",
        method="sparsegpt",
        data=llama_batches(),
        progress=lambda done, total, layer: solved.append(layer),
    )
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole"), f"killed after {layers} layers"
    assert len(solved) == 21
    assert not (tmp_path / ".killed.unfinished").exists()


class _Stopped(BaseException):
    pass


def stop_after(layers: int) -> Callable[[int, int, str], None]:
    def stop(done: int, total: int, layer: str) -> None:
        if done == layers:
            raise _Stopped

    return stop


def interrupted(file: Path, goal: Path, layers: int) -> Path:
    """Stop a run in mid-block; gives the folder that it leaves."""
    with pytest.raises(_Stopped):
        resumed(file, goal, progress=stop_after(layers))
    return goal.with_name(f".{goal.name}.unfinished")


def resumed(file: Path, goal: Path, **changes: Any) -> sw.models.SparsifyResult:
    options: dict[str, Any] = {"model": Tower, "method": "wanda", "data": tower_batches()}
    return sw.sparsify_file(file, goal, changes.pop("plan", "2:4"), **{**options, **changes})


@pytest.mark.parametrize("spoil", ["a byte of a block that was whole", "the end of the file", "nothing"])
def test_what_is_not_whole_is_made_again(file: Path, tmp_path: Path, spoil: str) -> None:
    resumed(file, tmp_path / "whole.safetensors")
    goal = tmp_path / "new.safetensors"
    left = interrupted(file, goal, 7)
    under_way = left / "model.safetensors"
    if spoil == "the end of the file":
        os.truncate(under_way, under_way.stat().st_size // 2)
    elif spoil != "nothing":
        with safe_open(under_way, "pt") as opened:
            stored = opened.get_tensor("blocks.0.left.weight")
        content = bytearray(under_way.read_bytes())
        content[content.index(stored.numpy().tobytes())] ^= 1
        under_way.write_bytes(content)
    done = resumed(file, goal)
    assert goal.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert set(done.layers) == {f"blocks.{n}.{name}" for n in range(3) for name in ("left", "right", "down")}


def test_what_another_run_left_is_refused_by_what_differs(file: Path, tmp_path: Path) -> None:
    goal = tmp_path / "new.safetensors"
    left = interrupted(file, goal, 7)
    before = (left / "sparsify.json").read_bytes()
    for changes, word in (
        ({"plan": "1:4"}, "plan"),
        ({"method": "sparsegpt"}, "method"),
        ({"data": tower_batches()[:2]}, "data"),
    ):
        with pytest.raises(sw.FileError, match=f"with another {word}"):
            resumed(file, goal, **changes)
    save_file({name: tensor + 1 for name, tensor in tower().state_dict().items()}, file)
    with pytest.raises(sw.FileError, match="another source"):
        resumed(file, goal)
    assert (left / "sparsify.json").read_bytes() == before
    assert resumed(file, goal, resume=False).layers


@dataclass(frozen=True)
class Scaled(AbstractSparsifier):
    """Magnitude with a setting of its own."""

    scale: float = 1.0

    def choose(self, weight: Tensor, stats: LayerStats | None, pattern: AbstractPattern, layer: str) -> Sparsified:
        return sparsifiers.get("magnitude").choose(weight, stats, pattern, layer)


class Stepped(Tower):
    """A tower with a setting that no tensor shows."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power


def test_a_run_with_other_settings_of_method_or_model_is_another_run(file: Path, tmp_path: Path) -> None:
    goal = tmp_path / "new.safetensors"
    with pytest.raises(_Stopped):
        resumed(file, goal, model=Stepped, method=Scaled(1.0), data=None, progress=stop_after(4))
    with pytest.raises(sw.FileError, match="with another method"):
        resumed(file, goal, model=Stepped, method=Scaled(2.0), data=None)
    with pytest.raises(sw.FileError, match="with another model"):
        resumed(file, goal, model=lambda: Stepped(2.0), method=Scaled(1.0), data=None)
    assert resumed(file, goal, model=Stepped, method=Scaled(1.0), data=None).layers


def test_an_edited_config_is_another_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(_Stopped):
        sw.sparsify_file(folder, tmp_path / "new", "2:4", progress=stop_after(8))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(sw.FileError, match="with another model"):
        sw.sparsify_file(folder, tmp_path / "new", "2:4")


def test_files_that_were_copied_in_part_are_copied_again(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"tokens": list(range(100))}))
    with pytest.raises(_Stopped):
        sw.sparsify_file(folder, tmp_path / "new", "2:4", progress=stop_after(8))
    left = tmp_path / ".new.unfinished"
    for name in ("tokenizer.json", "config.json", "generation_config.json", ".tokenizer.json.x.part"):
        (left / name).write_bytes(b'{"cut shor')
    sw.sparsify_file(folder, tmp_path / "new", "2:4")
    goal = tmp_path / "new"
    for name in ("tokenizer.json", "generation_config.json"):
        assert (goal / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((goal / "config.json").read_text())["quantization_config"]["masked"]
    assert not list(goal.glob(".*"))


def test_two_runs_at_once_do_not_write_over_each_other(file: Path, tmp_path: Path) -> None:
    goal = tmp_path / "new.safetensors"
    refused: list[str] = []

    def begin_again(done: int, total: int, layer: str) -> None:
        with pytest.raises(sw.FileError, match="Another process is at work") as caught:
            resumed(file, goal)
        refused.append(str(caught.value))

    resumed(file, goal, progress=begin_again)
    assert len(refused) == 9
    assert goal.is_file()


def test_a_finished_goal_is_refused(file: Path, tmp_path: Path) -> None:
    goal = tmp_path / "new.safetensors"
    resumed(file, goal)
    before = goal.read_bytes()
    with pytest.raises(sw.FileError, match="exists already"):
        resumed(file, goal)
    assert goal.read_bytes() == before


def test_a_missing_tensor_is_named_before_anything_is_written(file: Path, tmp_path: Path) -> None:
    state = tower().state_dict()
    del state["blocks.1.down.weight"]
    save_file(state, file)
    with pytest.raises(sw.FileError, match=r"blocks\.1\.down\.weight"):
        resumed(file, tmp_path / "new.safetensors")
    assert list(tmp_path.iterdir()) == [file]


def test_a_shard_that_is_cut_short_or_missing_is_named(folder: Path, tmp_path: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    with pytest.raises(sw.BundleError, match=shard.name):
        sw.sparsify_file(folder, tmp_path / "new", "2:4")
    shard.unlink()
    with pytest.raises(sw.FileError, match=f"lacks the shard {shard.name}"):
        sw.sparsify_file(folder, tmp_path / "new", "2:4")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_weight_that_is_no_number_is_named_and_the_blocks_before_it_stay(file: Path, tmp_path: Path) -> None:
    state = tower().state_dict()
    state["blocks.1.down.weight"][3, 5] = float("nan")
    save_file(state, file)
    with pytest.raises(sw.NumericError, match=r"blocks\.1\.down.*\[3, 5\] is nan"):
        resumed(file, tmp_path / "new.safetensors")
    record = json.loads((tmp_path / ".new.safetensors.unfinished" / "sparsify.json").read_text())
    assert "blocks.0" in record["parts"]


def test_a_wrong_model_and_a_missing_one_are_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(sw.ModelError, match="with the shape"):
        resumed(file, tmp_path / "new.safetensors", model=lambda: Tower(width=32))
    with pytest.raises(sw.ModelError, match=r"no config\.json"):
        resumed(file, tmp_path / "new.safetensors", model=None)
    ready = tower()
    with pytest.raises(sw.ModelError, match="must build the model"):
        resumed(file, tmp_path / "new.safetensors", model=lambda: ready)
    with pytest.raises(sw.DataError, match="needs data"):
        resumed(file, tmp_path / "new.safetensors", data=None)


def test_the_class_that_the_config_names_is_built(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**size, vocab_size=50))
    model.save_pretrained(tmp_path / "model")
    done = sw.sparsify_file(tmp_path / "model", tmp_path / "new", "2:4", method="wanda", data=llama_batches())
    sw.register_transformers()
    expected = transformers.BertForMaskedLM.from_pretrained(tmp_path / "model")
    assert set(done.layers) == set(sw.sparsify_(expected, "2:4", method="wanda", data=llama_batches()).layers)
    require_same_state(transformers.BertForMaskedLM.from_pretrained(tmp_path / "new"), expected)


def test_tensors_that_transformers_renames_are_told(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**size, vocab_size=50))
    save_file(
        {name.replace("lm_head", "embed_out"): tensor for name, tensor in model.state_dict().items()},
        (tmp_path / "model.safetensors"),
    )
    model.config.architectures = ["GPTNeoXForCausalLM"]
    model.config.save_pretrained(tmp_path)
    with pytest.raises(sw.FileError, match=r"a GPTNeoXForCausalLM needs.*renames.*pass model="):
        sw.sparsify_file(tmp_path, tmp_path / "new", "2:4")


def test_data_that_do_not_fit_are_told_by_their_number_and_leave_nothing(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    good, bad = llama_batches()[:2]
    bad["input_ids"][0, 0] = 999
    with pytest.raises(sw.DataError, match=r"Batch 1 does not fit the model .IndexError"):
        sw.sparsify_file(folder, tmp_path / "new", "2:4", method="wanda", data=[good, bad])
    with pytest.raises(sw.DataError, match=r"Batch 0 does not fit the model .RuntimeError"):
        resumed(file, tmp_path / "new.safetensors", data=[torch.randn(2, 23)])
    assert sorted(tmp_path.iterdir()) == before


def test_places_and_engines_that_are_none_are_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(sw.ModelError, match="engine is the name"):
        resumed(file, tmp_path / "new.safetensors", engine=None)
    with pytest.raises(sw.FileError, match="destination is the path"):
        resumed(file, None)  # type: ignore[arg-type]
    with pytest.raises(sw.FileError, match="source is the path"):
        resumed(3, tmp_path / "new.safetensors")  # type: ignore[arg-type]


class Broken(Tower):
    """Something happens between its blocks."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, scale = self.first(inputs), self.scale * self.steps
        for block in self.blocks:
            hidden, scale = block(hidden * 2, scale=scale)
        return self.last(hidden)


def test_blocks_that_do_not_feed_one_another_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(sw.ModelError, match=r"blocks that feed one another.*blocks\.1.*sparsify_"):
        resumed(file, tmp_path / "new.safetensors", model=Broken)


def test_the_command_line_streams_the_model_of_a_recipe(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model": f"hf:{folder}",
        "task": "python:streamed_model:make_task",
        "sparsify": {"method": "wanda", "exclude": ["re:.*o_proj"]},
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    assert main(["sparsify", "recipe.yaml", "--plan", "2:4", "--stream", "--out", "new", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["layers"]) == 18

    expected = transformers.LlamaForCausalLM.from_pretrained(folder)
    sw.sparsify_(expected, "2:4", method="wanda", data=llama_batches(), exclude=["re:.*o_proj"])
    sw.register_transformers()
    require_same_state(transformers.LlamaForCausalLM.from_pretrained("new"), expected)
    assert main(["sparsify", "recipe.yaml", "--plan", "2:4", "--stream", "--out", "new"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_stays_below_a_block_three_gram_matrices_and_the_activations(tmp_path: Path) -> None:
    hidden, inner, blocks = 512, 1536, 8
    llama(hidden, inner, blocks).save_pretrained(tmp_path / "model", max_shard_size="20MB")
    attention = hidden * hidden * 3
    block = 4 * (attention + 3 * hidden * inner + 2 * hidden)
    activations = 4 * 4 * 2 * 64 * hidden
    bound = int(1.5 * block) + 3 * 8 * inner**2 + activations

    done = child(tmp_path / "model", tmp_path / "new", "peak")

    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout.splitlines()[-1])
    # The bound is less than all blocks together, so that a model in memory would be seen.
    assert block < peak < bound < blocks * block


@pytest.mark.slow
def test_ray_gives_the_same_bits_though_a_worker_and_a_machine_die(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster

    marker = tmp_path / "died"
    marker.touch()
    resumed(file, tmp_path / "local.safetensors", method=DiesOnce(marker))
    marker.unlink()
    # Workers import the sparsifier by name.
    here = str(Path(streamed_model.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster()
    try:
        try:
            cluster.add_node(**node)
            second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            pytest.skip(f"Ray starts no cluster of two nodes here: {error}")

        def lose_a_machine(done: int, total: int, layer: str) -> None:
            if done == 4:
                cluster.remove_node(second, allow_graceful=False)

        resumed(file, tmp_path / "ray.safetensors", method=DiesOnce(marker), engine="ray", progress=lose_a_machine)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert marker.exists()
    assert (tmp_path / "ray.safetensors").read_bytes() == (tmp_path / "local.safetensors").read_bytes()


def test_without_ray_its_engine_names_the_extra(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsewright.pipeline.streaming.ray_engine.find_spec", lambda name: None)
    with pytest.raises(sw.MissingPackageError, match=r"sparsewright\[ray\]"):
        resumed(file, tmp_path / "new.safetensors", engine="ray")
    assert list(tmp_path.iterdir()) == [file]
