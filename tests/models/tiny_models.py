"""Models small enough to be built in milliseconds, one per family."""

import torch
from torch import Tensor, nn

from sparsewright.models import ensure_torchvision_imports

VOCABULARY = 101

# Before any model file of transformers or timm is imported.
ensure_torchvision_imports()


def token_batch(batch: int = 2, length: int = 9, padded: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.long)
    if padded:
        mask[-1, length - padded :] = 0
    return {"input_ids": torch.randint(5, VOCABULARY, (batch, length)), "attention_mask": mask}


def tiny_bert(layers: int = 3) -> nn.Module:
    from transformers import AutoModel, BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
    )
    return AutoModel.from_config(config).eval()


def tiny_classifier() -> nn.Module:
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        num_labels=3,
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def tiny_llama() -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_gpt2() -> nn.Module:
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_t5() -> nn.Module:
    from transformers import AutoModelForSeq2SeqLM, T5Config

    torch.manual_seed(0)
    config = T5Config(
        d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def tiny_deit() -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(
        "deit_tiny_patch16_224", img_size=32, embed_dim=32, depth=3, num_heads=2, num_classes=10
    ).eval()


class ConvNet(nn.Module):
    """Two residual blocks with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(ConvBlock(), ConvBlock())
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class ConvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.relu(self.norm(self.conv(images)))


class Mlp(nn.Sequential):
    def __init__(self, width: int = 32) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
