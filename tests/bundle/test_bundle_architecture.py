"""transformers and timm models are built again from the manifest alone, and only from what stands on the list."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_models import pack_layer
from test_hostile_bundles import forge

from sparsewright.bundle import inspect, load, save
from sparsewright.bundle.architecture import describe
from sparsewright.core import BundleError
from sparsewright.models import ensure_torchvision_imports
from sparsewright.nn import SparseTensor

ensure_torchvision_imports()
transformers = pytest.importorskip("transformers", reason="needs the extra [hf]")


def small(kind: str = "bert", **more: Any) -> Any:
    settings = {
        "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "llama": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        },
    }[kind]
    return transformers.AutoConfig.for_model(kind, vocab_size=99, **settings, **more)


@pytest.fixture
def encoder() -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(small()).eval()
    for block in model.encoder.layer:
        pack_layer(block.intermediate.dense, "2:4x4")
    return model


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("bert", "AutoModel"),
        ("bert", "AutoModelForSequenceClassification"),
        ("gpt2", "AutoModelForCausalLM"),
        ("llama", "AutoModelForCausalLM"),
    ],
)
def test_a_transformers_model_is_built_from_the_file_alone(tmp_path: Path, kind: str, auto: str) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(small(kind, num_labels=3)).eval()
    save(model, tmp_path / "m.safetensors", dense_dtype="fp32", source="hf:somewhere")
    assert inspect(tmp_path / "m.safetensors").manifest.model.architecture == auto
    again = load(tmp_path / "m.safetensors")
    assert type(again) is type(model)
    assert not again.training
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(again(tokens)[0], model(tokens)[0])
    # Buffers that no file holds are computed, not left empty.
    for (name, mine), (_, theirs) in zip(again.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_packed_encoder_comes_back_packed(tmp_path: Path, encoder: Any) -> None:
    save(encoder, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert all(isinstance(block.intermediate.dense.weight, SparseTensor) for block in again.encoder.layer)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(again(tokens)[0], encoder(tokens)[0])


def test_a_model_without_its_default_parts_says_why_it_wants_the_architecture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bare = transformers.BertModel(small(), add_pooling_layer=False).eval()
    pack_layer(bare.encoder.layer[0].intermediate.dense, "2:4x4")
    save(bare, tmp_path / "m.safetensors")
    with pytest.raises(BundleError) as caught:
        load(tmp_path / "m.safetensors")
    assert "transformers config alone builds (AutoModel, BertModel): it lacks 'pooler.dense.weight'" in str(
        caught.value
    )
    assert "add_pooling_layer=False" in str(caught.value)
    assert "sparsewright.load(path, model=...)" in str(caught.value)
    again = load(tmp_path / "m.safetensors", transformers.BertModel(small(), add_pooling_layer=False).eval())
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).last_hidden_state, bare(tokens).last_hidden_state)


def test_the_manifest_holds_no_path_and_no_private_setting(tmp_path: Path, encoder: Any) -> None:
    encoder.config._name_or_path = "/home/someone/model"
    encoder.config.invented = "value"
    save(encoder, tmp_path / "m.safetensors")
    config = inspect(tmp_path / "m.safetensors").manifest.model.config
    assert not [key for key in config if key.startswith("_")]
    assert "invented" not in config
    assert config["hidden_size"] == 32


CONFIG_ATTACKS: dict[str, dict[str, Any]] = {
    "remote code": {"auto_map": {"AutoModel": "evil.Model"}},
    "quantiser": {"quantization_config": {"quant_method": "evil"}},
    "fetched backbone": {"backbone": "evil/model"},
    "fetched kernels": {"attn_implementation": "evil/kernels"},
    "private": {"_name_or_path": "evil"},
    "unknown key": {"os": "system"},
    "deep in a sub-config": {"id2label": {"auto_map": "evil"}},
    "unknown type": {"model_type": "evil"},
    "no type": {"model_type": None},
    "endless layers": {"num_hidden_layers": 10**9},
    "huge width": {"hidden_size": 2**30},
    "beyond all bounds": {"vocab_size": 2**40},
    "other shape": {"intermediate_size": 128},
    "more layers": {"num_hidden_layers": 3},
    "not buildable": {"num_attention_heads": 5},
    "no number": {"hidden_size": "many"},
    "huge buffers": {"max_position_embeddings": 2**30},
}


@pytest.mark.parametrize("attack", CONFIG_ATTACKS)
def test_a_config_off_the_list_is_refused(tmp_path: Path, encoder: Any, attack: str) -> None:
    save(encoder, tmp_path / "m.safetensors")
    path = forge(tmp_path / "m.safetensors", lambda m, d: m["model"]["config"].update(CONFIG_ATTACKS[attack]))
    with pytest.raises(BundleError, match=r"bundle|transformers") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["AutoTokenizer", "pipeline", "os.system", ""])
def test_an_auto_class_off_the_list_is_refused(tmp_path: Path, encoder: Any, architecture: str) -> None:
    save(encoder, tmp_path / "m.safetensors")
    path = forge(tmp_path / "m.safetensors", lambda m, d: m["model"].update(architecture=architecture))
    with pytest.raises(BundleError, match="not on the list"):
        load(path)


def test_a_timm_model_is_built_from_the_file_alone(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32).eval()
    pack_layer(model.blocks[0].mlp.fc1, "1:4x4")
    save(model, tmp_path / "m.safetensors", config={"img_size": 32})
    again = load(tmp_path / "m.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    path = forge(tmp_path / "m.safetensors", lambda m, d: m["model"].update(architecture="hf-hub:evil/model"))
    with pytest.raises(BundleError, match="knows no model"):
        load(path)
    path = forge(tmp_path / "m.safetensors", lambda m, d: m["model"]["config"].update(checkpoint_path="evil"))
    with pytest.raises(BundleError, match="not on the list"):
        load(path)


@pytest.mark.parametrize(
    "name, settings, shape",
    [
        ("resnet18", {"num_classes": 7, "in_chans": 1}, (2, 1, 64, 64)),
        ("resnet18", {"global_pool": "max"}, (2, 3, 64, 64)),
        ("resnet18", {"num_classes": 0}, (2, 3, 64, 64)),
        ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 3, "drop_path_rate": 0.1}, (2, 3, 64, 64)),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "img_size": (32, 64)}, (2, 3, 32, 64)),
    ],
    ids=str,
)
def test_settings_of_a_timm_model_are_read_off_it(
    tmp_path: Path, name: str, settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    torch.manual_seed(0)
    model = timm.create_model(name, **settings).eval()
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    images = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    "name, settings",
    [
        ("vit_tiny_patch16_224", {"num_heads": 2}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
        ("swin_tiny_patch4_window7_224", {"always_partition": True}),
    ],
    ids=str,
)
def test_settings_that_only_an_attribute_tells_want_the_architecture(name: str, settings: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    with torch.device("meta"):
        made, usual = timm.create_model(name, **settings), timm.create_model(name, drop_rate=0.1)
    assert describe(made, None, None).library == "torch"
    usual.set_grad_checkpointing()
    for module in usual.eval().modules():
        module.weight_pattern = "2:4"
    assert describe(usual, None, None).library == "timm"


@pytest.mark.parametrize("settings", [{"act_layer": "gelu"}, {"output_stride": 8}])
def test_a_timm_model_of_other_settings_wants_its_architecture(tmp_path: Path, settings: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    model = timm.create_model("resnet18", **settings).eval()
    save(model, tmp_path / "m.safetensors")
    with pytest.raises(BundleError, match=r"only its own code can build\. Build it and pass it"):
        load(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", model=timm.create_model("resnet18", **settings)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
