"""Unmodified models of torch, transformers and timm, small, with packed weights; built here, nothing is fetched."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsewright import pack_, sparsify_
from sparsewright.models import ensure_torchvision_imports

# Before any model file of transformers or timm is imported.
ensure_torchvision_imports()

WIDTH = 64


class Plain(nn.Module):
    """Torch's own layers, a buffer, tied embedding and output, and two linears that share one sparse weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True, dropout=0.0)
        self.up = nn.Linear(WIDTH, WIDTH)
        self.again = nn.Linear(WIDTH, WIDTH)
        self.again.weight = self.up.weight
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.block(self.embed(tokens))
        hidden = self.again(torch.relu(self.up(hidden)))
        return self.head(self.norm(hidden.transpose(1, 2)).transpose(1, 2))


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        make: builds it dense, with reproducible weights.
        inputs: keyword arguments of a call.
        rules: layer name or expression -> pattern.
        packed: names of layers that must be packed.
        tied: pairs of parameter names that are one parameter.
    """

    make: Callable[[], nn.Module]
    inputs: Mapping[str, Tensor]
    rules: Mapping[str, str]
    packed: tuple[str, ...]
    tied: tuple[tuple[str, str], ...] = ()

    def dense(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()

    def masked(self) -> nn.Module:
        model = self.dense()
        sparsify_(model, dict(self.rules))
        for first, second in (pair for pair in self.tied if pair[0].removesuffix(".weight") in self.packed):
            # `sparsify_` leaves shared weights alone; a user who masks them masks both modules.
            mask = torch.arange(WIDTH).expand(WIDTH, WIDTH) % 2 == 0
            for name in (first, second):
                module = model.get_submodule(name.removesuffix(".weight"))
                module.register_buffer("weight_mask", mask)
                module.weight.data.mul_(mask)
        return model

    def packed_model(self, **options: Any) -> nn.Module:
        model = self.masked()
        pack_(model, force=True, **options)
        return model

    def run(self, model: nn.Module, dtype: torch.dtype | None = None, device: str | None = None) -> Tensor:
        inputs = {
            name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            for name, value in self.inputs.items()
        }
        with torch.no_grad():
            answer = model(**inputs)
        for name in ("logits", "last_hidden_state"):
            if hasattr(answer, name):
                return getattr(answer, name)
        return answer


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(vocab_size=99, max_position_embeddings=32, **sizes))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32, vocab_size=99, **ids))


def _deit() -> nn.Module:
    import timm

    sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.create_model("deit_tiny_patch16_224", img_size=32, **sizes)


def _tokens(count: int) -> Tensor:
    return torch.arange(2 * 7).remainder(count).view(2, 7)


CASES: dict[str, Case] = {
    "torch": Case(
        Plain,
        {"tokens": _tokens(40)},
        {"re:block.linear.": "2:4x4"},
        ("block.linear1", "block.linear2", "up", "again"),
        (("embed.weight", "head.weight"), ("up.weight", "again.weight")),
    ),
    "transformers bert": Case(
        _bert,
        {"input_ids": _tokens(99)},
        {"re:.*query": "2:4x4", "re:.*intermediate.dense": "1:4x4", "re:.*layer.*.output.dense": "4x1@50%"},
        ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.intermediate.dense"),
        (("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),),
    ),
    "transformers gpt2": Case(
        _gpt2,
        {"input_ids": _tokens(99)},
        {"re:.*c_fc": "2:4x4", "re:.*mlp.c_proj": "1:4x4"},
        ("transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_proj"),
        (("transformer.wte.weight", "lm_head.weight"),),
    ),
    "timm deit": Case(
        _deit,
        {"x": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)},
        {"re:blocks.*.qkv": "2:4x4", "re:blocks.*.fc.": "4x1@20%"},
        ("blocks.0.attn.qkv", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"),
    ),
}
