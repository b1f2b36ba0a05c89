"""Which layers take part, which do not and why, and in which order blocks run."""

from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from sparsewright.core import ModelError
from sparsewright.models import AbstractAdapter, Batch, adapter_of, adapters, blocks, layers
from sparsewright.models.flow import chains
from sparsewright.testing.adapters import AdapterContract


class TestTorchAdapter(AdapterContract):
    @pytest.fixture
    def adapter(self) -> AbstractAdapter:
        return adapters.get("torch")

    @pytest.fixture(params=[tiny_models.Mlp, tiny_models.ConvNet])
    def model(self, request: pytest.FixtureRequest) -> nn.Module:
        return request.param()

    @pytest.fixture
    def batch(self, model: nn.Module) -> Any:
        torch.manual_seed(0)
        return torch.randn(2, 3, 8, 8) if isinstance(model, tiny_models.ConvNet) else torch.randn(5, 32)


class TestTransformersAdapter(AdapterContract):
    @pytest.fixture
    def adapter(self) -> AbstractAdapter:
        return adapters.get("transformers")

    @pytest.fixture(
        params=["tiny_bert", "tiny_classifier", "tiny_llama", "tiny_gpt2", "tiny_t5"],
    )
    def model(self, request: pytest.FixtureRequest) -> nn.Module:
        return getattr(tiny_models, request.param)()

    @pytest.fixture
    def batch(self, model: nn.Module) -> Any:
        batch = tiny_models.token_batch()
        if type(model).__name__.startswith("T5"):
            batch["decoder_input_ids"] = batch["input_ids"][:, :4]
        return batch


class TestTimmAdapter(AdapterContract):
    @pytest.fixture
    def adapter(self) -> AbstractAdapter:
        return adapters.get("timm")

    @pytest.fixture
    def model(self) -> nn.Module:
        return tiny_models.tiny_deit()

    @pytest.fixture
    def batch(self) -> Any:
        torch.manual_seed(0)
        return torch.randn(2, 3, 32, 32)


def reasons(model: nn.Module, **choice: Any) -> dict[str, str]:
    return {ref.name: ref.skipped_reason for ref in layers(model, **choice)}


def test_each_family_gets_its_adapter() -> None:
    assert adapter_of(tiny_models.Mlp()) is adapters.get("torch")
    assert adapter_of(tiny_models.tiny_bert()) is adapters.get("transformers")
    assert adapter_of(tiny_models.tiny_deit()) is adapters.get("timm")


def test_something_else_than_a_module_is_refused() -> None:
    with pytest.raises(ModelError, match="load_model"):
        layers("bert")  # type: ignore[arg-type]


def test_blocks_are_found_by_structure_in_every_family() -> None:
    found = {
        "encoder.layer.2": tiny_models.tiny_bert(),
        "model.layers.2": tiny_models.tiny_llama(),
        "transformer.h.1": tiny_models.tiny_gpt2(),
        "decoder.block.1": tiny_models.tiny_t5(),
        "blocks.2": tiny_models.tiny_deit(),
        "blocks.1": tiny_models.ConvNet(),
    }
    for last, model in found.items():
        assert blocks(model)[-1][0] == last


def test_a_list_of_bare_linears_is_no_list_of_blocks() -> None:
    assert blocks(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))) == []


def test_blocks_inside_stages_are_the_blocks() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(tiny_models.ConvBlock(), tiny_models.ConvBlock())

    assert [name for name, _ in blocks(nn.Sequential(Stage(), Stage()))] == [
        "0.blocks.0",
        "0.blocks.1",
        "1.blocks.0",
        "1.blocks.1",
    ]


def test_embeddings_and_what_is_tied_to_them_stay_dense() -> None:
    found = reasons(tiny_models.tiny_gpt2())
    assert found["transformer.wte"].startswith("embedding")
    assert found["lm_head"].startswith("its weight is shared with transformer.wte, which reads it otherwise")


def test_heads_and_layers_outside_the_blocks_stay_dense_unless_named() -> None:
    llama, bert = tiny_models.tiny_llama(), tiny_models.tiny_bert()
    assert reasons(llama)["lm_head"].startswith("output head")
    assert reasons(bert)["pooler.dense"].startswith("outside the repeated blocks")
    assert reasons(tiny_models.tiny_classifier())["classifier"] == "output head"
    assert reasons(llama, include=["lm_head"])["lm_head"] == ""
    assert reasons(bert, include=["re:pooler.*"])["pooler.dense"] == ""


def test_a_tied_head_stays_dense_even_if_named() -> None:
    assert reasons(tiny_models.tiny_gpt2(), include=["lm_head"])["lm_head"]


def test_convolutions_take_part_in_a_search_only_where_they_are_named() -> None:
    model = tiny_models.ConvNet()
    assert reasons(model)["blocks.0.conv"].startswith("convolution: name it to search it")
    assert reasons(model, mask_only=True)["blocks.0.conv"] == ""
    assert reasons(model, mask_only=True)["stem"].startswith("it reads the raw input")


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.MultiheadAttention(32, 2).out_proj, "MultiheadAttention"),
        (nn.Conv2d(32, 32, 3, groups=32), "groups"),
        (nn.LSTM(32, 32), "recurrent"),
        (nn.Conv1d(32, 32, 3), "Conv1d has no matrix view"),
        (nn.Linear(16, 2), "too small"),
        (nn.LazyLinear(32), "run one batch first"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)), "parametrisation"),
        (type("Odd", (nn.Linear,), {"forward": lambda self, x: x})(32, 32), "in its own way"),
    ],
)
def test_every_skipped_layer_says_why(module: nn.Module, word: str) -> None:
    refs = layers(nn.ModuleDict({"it": module}))
    assert [ref.name for ref in refs][:1] == ["it"]
    assert word in refs[0].skipped_reason


def test_attention_in_one_parameter_is_listed_although_it_is_no_layer() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2)
    found = reasons(model)
    assert "one parameter" in found["layers.0.self_attn"]
    assert found["layers.0.linear1"] == ""


def test_exclude_wins_over_include_and_all_others_are_named_as_not_included() -> None:
    model = tiny_models.Mlp()
    found = reasons(model, include=["re:.*"], exclude=["0"])
    assert found == {"0": "excluded by name", "2": ""}
    assert reasons(model, include=["2"])["0"] == "not among the included names"


def test_a_pattern_that_matches_nothing_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ModelError, match=r"encoder\.layer\.0\.output\.dense"):
        layers(tiny_models.tiny_bert(), exclude=["encoder.layer.0.output.dens"])
    with pytest.raises(ModelError, match="not a valid regular expression"):
        layers(tiny_models.Mlp(), include=["re:("])


def test_shared_modules_are_listed_once() -> None:
    shared = nn.Linear(32, 32)
    assert [ref.name for ref in layers(nn.Sequential(shared, nn.ReLU(), shared))] == ["0"]


def test_two_layers_with_one_weight_are_one_under_the_name_of_the_first() -> None:
    first, second, other = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
    second.weight = first.weight
    model = nn.Sequential(first, other, second)
    assert reasons(model, mask_only=True) == {
        "0": "",
        "1": "",
        "2": "its weight is that of 0, and becomes sparse with it",
    }
    assert reasons(model)["0"].startswith("several layers share its weight: name it to search it")
    assert reasons(model, include=["0"])["0"] == ""
    assert [ref.holders for ref in layers(model)] == [(first, second), (other,), (second,)]


def test_a_weight_that_modules_of_two_kinds_read_stays_dense() -> None:
    linear, embedding = nn.Linear(32, 64), nn.Embedding(64, 32)
    linear.weight = embedding.weight
    found = reasons(nn.Sequential(linear, embedding), include=["0"])
    assert found["0"] == (
        "its weight is shared with 1, which reads it otherwise: give the layer a copy of its own to make it sparse"
    )


def test_an_encoder_and_a_decoder_are_two_chains() -> None:
    model = tiny_models.tiny_t5()
    batch = tiny_models.token_batch()
    with torch.no_grad():
        found = chains(model, blocks(model), Batch(kwargs={**batch, "decoder_input_ids": batch["input_ids"]}))
    assert [[name for name, _ in chain] for chain in found] == [
        ["encoder.block.0", "encoder.block.1"],
        ["decoder.block.0", "decoder.block.1"],
    ]


def test_an_adapter_of_ones_own_joins_with_one_decorator() -> None:
    class Special(nn.Sequential):
        pass

    @adapters.register("special")
    class SpecialAdapter(AbstractAdapter):
        rank = 20

        def handles(self, model: nn.Module) -> bool:
            return isinstance(model, Special)

        def heads(self, model: nn.Module) -> dict[str, str]:
            return {"1": "the last layer decides"}

    try:
        found = reasons(Special(nn.Linear(32, 32), nn.Linear(32, 32)))
    finally:
        adapters.remove("special")
    assert found == {"0": "", "1": "the last layer decides"}
