"""`save_pretrained` and `from_pretrained` keep packed and masked layers bit for bit, once they were asked to."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_models import mask_layer, pack_layer
from torch import Tensor, nn

import sparsewright
from sparsewright import dispatch_report, keep_masks_, register_transformers
from sparsewright.core import BundleError, KernelError, ModelError
from sparsewright.models import ensure_torchvision_imports
from sparsewright.nn import SparseTensor

ensure_torchvision_imports()
transformers = pytest.importorskip("transformers", reason="needs the extra [hf]")
TOKENS = torch.arange(14).view(2, 7)


def bert(auto: str = "BertForMaskedLM") -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return getattr(transformers, auto)(transformers.BertConfig(vocab_size=99, **sizes)).eval()


def encoder_of(model: Any) -> Any:
    return getattr(model, "bert", model).encoder


def sparse_bert(auto: str = "BertForMaskedLM", dtype: torch.dtype = torch.float32) -> Any:
    """Packed feed-forward layers, masked queries, all else dense; tied embeddings."""
    model = bert(auto)
    for block in encoder_of(model).layer:
        pack_layer(block.intermediate.dense, "2:4x4", dtype)
        pack_layer(block.output.dense, "4x1@50%", dtype)
        mask_layer(block.attention.self.query, "1:4")
    return model


def sparse_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    sparsewright.sparsify_(model, {"re:.*c_fc": "2:4x4"})
    sparsewright.pack_(model, force=True)
    return model


def answer(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS)[0]


def write(model: Any, folder: Path, **options: Any) -> Path:
    register_transformers(model)
    model.save_pretrained(folder, **options)
    return folder


def same_state(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_a_round_trip_is_bit_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    model = sparse_bert(dtype=dtype)
    again = transformers.AutoModelForMaskedLM.from_pretrained(write(model, tmp_path / "a"))
    assert type(again) is type(model)
    assert same_state(again, model)
    assert torch.equal(answer(again), answer(model))
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    # And again, without a second registration: the same bytes.
    again.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_transposed_layer_and_tied_embeddings_come_back(tmp_path: Path) -> None:
    model = sparse_gpt2()
    again = transformers.AutoModelForCausalLM.from_pretrained(write(model, tmp_path))
    assert isinstance(again.transformer.h[1].mlp.c_fc.weight, SparseTensor)
    assert again.transformer.h[1].mlp.c_fc.weight.shape == (32, 128)
    assert again.lm_head.weight is again.transformer.wte.weight
    assert same_state(again, model)
    assert torch.equal(answer(again), answer(model))


def test_the_folder_holds_planes_and_no_dense_weight(tmp_path: Path) -> None:
    from safetensors import safe_open

    write(sparse_bert(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    layer = "bert.encoder.layer.0.intermediate.dense"
    assert {f"{layer}.weight.L1.values", f"{layer}.weight.L1.index", f"{layer}.bias"} <= names
    assert f"{layer}.weight" not in names
    assert "bert.encoder.layer.0.attention.self.query.weight_mask" in names
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "sparsewright"
    assert told["layers"][layer]["pattern"] == "2:4x4"


def test_a_large_model_in_several_files_comes_back(tmp_path: Path) -> None:
    model = sparse_bert()
    write(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert same_state(transformers.BertForMaskedLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(("saved", "loaded"), [("BertForMaskedLM", "BertModel"), ("BertModel", "BertForMaskedLM")])
def test_the_model_inside_and_the_model_around_find_their_layers(tmp_path: Path, saved: str, loaded: str) -> None:
    model = sparse_bert(saved)
    again = getattr(transformers, loaded).from_pretrained(write(model, tmp_path))
    for ours, theirs in zip(encoder_of(again).layer, encoder_of(model).layer, strict=True):
        assert same_state(ours, theirs)
        assert isinstance(ours.output.dense.weight, SparseTensor)


def test_what_was_loaded_is_an_ordinary_model(tmp_path: Path) -> None:
    model = sparse_bert()
    again = transformers.BertForMaskedLM.from_pretrained(write(model, tmp_path / "folder"))
    assert sum(row.state == "packed" for row in dispatch_report(again)) == 4
    assert torch.equal(answer(copy.deepcopy(again)), answer(model))
    half = copy.deepcopy(again).half()
    assert encoder_of(half).layer[0].output.dense.weight.dtype == torch.float16
    assert torch.equal(answer(copy.deepcopy(again).double().float()), answer(model))
    # Its masks can be trained on, and its bundle builds itself.
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-3)
    kept = keep_masks_(again, optimizer)
    assert len(kept.weights) == 2
    again(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    query = encoder_of(again).layer[0].attention.self.query
    assert not query.weight.detach()[~query.weight_mask].any()
    sparsewright.save(again, tmp_path / "m.safetensors")
    bundled = sparsewright.load(tmp_path / "m.safetensors")
    assert type(bundled) is type(again)
    torch.testing.assert_close(answer(bundled), answer(again), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_dtype_may_be_asked_for_and_the_one_saved_is_kept_otherwise(tmp_path: Path, dtype: torch.dtype) -> None:
    model = sparse_bert()
    asked = transformers.BertForMaskedLM.from_pretrained(write(model, tmp_path / "single"), dtype=dtype)
    moved = copy.deepcopy(model).to(dtype)
    assert same_state(asked, moved)
    assert answer(asked).dtype == dtype
    assert torch.equal(answer(asked), answer(moved))
    again = transformers.BertForMaskedLM.from_pretrained(write(moved, tmp_path / "half"))
    assert again.dtype == dtype
    assert same_state(again, moved)
    assert torch.equal(answer(again), answer(moved))


def test_a_packed_weight_that_two_layers_share_is_stored_once_and_shared_again(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = bert("BertModel")
    first, second = (block.attention.self.key for block in model.encoder.layer)
    pack_layer(first, "2:4x4")
    second._parameters["weight"] = first.weight
    write(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("encoder.layer.1.attention.self.key.weight")]  # noqa: SIM118
    again = transformers.BertModel.from_pretrained(tmp_path)
    first, second = (block.attention.self.key for block in again.encoder.layer)
    assert first.weight is second.weight
    assert list(second.state_dict()) == ["weight", "bias"]
    assert same_state(again, model)


def test_the_config_follows_what_the_model_holds_when_it_is_saved(tmp_path: Path) -> None:
    model = sparse_bert("BertModel")
    register_transformers(model)
    pack_layer(model.encoder.layer[0].attention.output.dense, "2:4")
    query = model.encoder.layer[0].attention.self.query
    query._parameters["weight"] = nn.Parameter(torch.ones(32, 32))
    del query._buffers["weight_mask"]
    model.save_pretrained(tmp_path)
    assert same_state(transformers.BertModel.from_pretrained(tmp_path), model)


def test_registering_twice_changes_nothing_and_importing_registers_nothing() -> None:
    register_transformers()
    register_transformers()
    code = """
import sparsewright
from sparsewright.models import ensure_torchvision_imports
ensure_torchvision_imports()
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
assert "sparsewright" not in AUTO_QUANTIZER_MAPPING
sparsewright.register_transformers()
assert "sparsewright" in AUTO_QUANTIZER_MAPPING
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_registration_the_error_says_what_to_call(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"sparsewright\.register_transformers\(model\)"):
        sparse_bert().save_pretrained(tmp_path)


def test_models_that_transformers_did_not_make_or_that_another_method_quantised_are_refused() -> None:
    from transformers.quantizers import HfQuantizer

    with pytest.raises(ModelError, match="takes a transformers model, got Linear"):
        register_transformers(nn.Linear(4, 4))

    class Other(HfQuantizer):
        def is_serializable(self) -> bool:
            return True

        is_trainable = False

    model = bert()
    model.hf_quantizer = Other(type("Config", (), {"quant_method": "other"})())
    with pytest.raises(ModelError, match="quantised by other"):
        register_transformers(model)


def change_config(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data["quantization_config"])
    path.write_text(json.dumps(data))


LAYER = "encoder.layer.0.output.dense"
DAMAGES: dict[str, Any] = {
    "another version": lambda told: told.update(version=99),
    "a strange field": lambda told: told.update(load="evil.module"),
    "an unknown layer": lambda told: told["layers"].update({"encoder.layer.9.output.dense": told["layers"][LAYER]}),
    "an attribute for a layer": lambda told: told["layers"].update({"config": told["layers"][LAYER]}),
    "another shape": lambda told: told["layers"][LAYER].update(shape=[64, 64], parameter_shape=[64, 64]),
    "an unknown layout": lambda told: told["layers"][LAYER].update(layout="evil"),
    "a wrong pattern": lambda told: told["layers"][LAYER].update(pattern="2:4x16"),
    "no planes": lambda told: told["layers"][LAYER].pop("tensors"),
    "a plane too many": lambda told: told["layers"][LAYER]["tensors"].update(more=["F32", [1]]),
    "a huge plane": lambda told: told["layers"][LAYER]["tensors"].update(values=["F32", [2**41]]),
    "a mask of another size": lambda told: told["masked"].update({"encoder.layer.0.attention.self.query": [3, 3]}),
    "a mask for nothing": lambda told: told["masked"].update({LAYER: [64, 32]}),
    "a share of nothing": lambda told: told["shared"].update({"encoder.layer.0.attention.self.key": "encoder.none"}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_or_hostile_config_is_refused(tmp_path: Path, damage: Any) -> None:
    write(sparse_bert("BertModel"), tmp_path)
    change_config(tmp_path, damage)
    with pytest.raises(BundleError):
        transformers.BertModel.from_pretrained(tmp_path)


def test_a_plane_of_another_size_than_the_config_says_is_refused_by_transformers_and_by_us(tmp_path: Path) -> None:
    write(sparse_bert("BertModel"), tmp_path)
    change_config(tmp_path, lambda told: told["layers"][LAYER]["tensors"].update(values=["F32", [7]]))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.BertModel.from_pretrained(tmp_path)
    with pytest.raises(BundleError, match="in another shape"):
        transformers.BertModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_a_lost_plane_or_mask_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write(sparse_bert("BertModel"), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    for lost in (f"{LAYER}.weight.L1.index", "encoder.layer.1.attention.self.query.weight_mask"):
        save_file({name: tensor for name, tensor in whole.items() if name != lost}, path, metadata={"format": "pt"})
        with pytest.raises(BundleError, match="lacks"):
            transformers.BertModel.from_pretrained(tmp_path)
