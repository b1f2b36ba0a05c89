"""Small stand-ins for tokenizers and encoders, so that task tests take no pretrained weights."""

import functools
import zlib
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from sparsewright.models.tasks.docstring_text import Docstring, standard_library


@functools.cache
def standard_library_once() -> list[Docstring]:
    """The standard library's items; parsing it takes seconds, and it does not change while tests run."""
    return standard_library()


class WordTokenizer:
    """One token per word, by checksum; calls and answers as transformers' tokenizers do."""

    pad_token_id = 0

    def __call__(self, texts, truncation=False, max_length=None, add_special_tokens=True):
        ids = [[1 + zlib.crc32(word.encode()) % 499 for word in text.split()] or [1] for text in texts]
        return {"input_ids": [row[:max_length] if truncation else row for row in ids]}


class TinyEncoder(nn.Module):
    """Embedding, one hidden layer, hidden states out."""

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(500, width)
        self.first = nn.Linear(width, 4 * width)
        self.second = nn.Linear(4 * width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        hidden = self.embedding(input_ids)
        hidden = hidden + self.second(torch.tanh(self.first(hidden)))
        return SimpleNamespace(last_hidden_state=hidden)


class TinyLM(nn.Module):
    """Embedding and a head: logits over 500 tokens."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = TinyEncoder(seed=seed)
        self.head = nn.Linear(16, 500)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids, attention_mask).last_hidden_state)
