"""Sentences to unit vectors: mean over the attention mask, then length one.

Source: Reimers and Gurevych 2019, arXiv:1908.10084 (mean pooling). Texts are run sorted by length, so that padding
costs almost nothing; the order of the result is the order of the texts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ModelError, require_finite
from .base import Batch, first_tensor, in_batches


def require_tokenizer(tokenizer: Any, task: str) -> Any:
    """The tokenizer, or one clear sentence.

    Raises:
        ModelError: the model came without a tokenizer.
    """
    if tokenizer is None:
        raise ModelError(
            f"The task {task!r} works on text and needs the model's tokenizer, which this model has none of. "
            "Load it with 'hf:NAME_OR_PATH' from a folder that holds the tokenizer files."
        )
    return tokenizer


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    """Token numbers of every text, special tokens included, cut to `length`, not padded."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=length, add_special_tokens=True)
    return [list(ids) for ids in encoded["input_ids"]]


def pad(token_lists: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """One batch dictionary from token lists.

    Returns:
        `input_ids` and `attention_mask`, each `(batch, longest)` int64.
    """
    longest = max(len(ids) for ids in token_lists)
    ids = torch.full((len(token_lists), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(token_lists), longest), dtype=torch.int64)
    for row, tokens in enumerate(token_lists):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over the real tokens, then length one.

    Args:
        hidden: `(batch, tokens, width)` floating point.
        attention_mask: `(batch, tokens)`, 1 = a real token.

    Returns:
        `(batch, width)` of unit length.
    """
    weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)
    return nn.functional.normalize(mean, dim=-1)


def encode(model: nn.Module, token_lists: Sequence[Sequence[int]], pad_id: int, batch: int = 64) -> Tensor:
    """Unit vectors of token lists.

    Args:
        model: answers `model(input_ids=, attention_mask=)` with hidden states `(batch, tokens, width)`.
        token_lists: not padded.
        pad_id: token that fills shorter rows.
        batch: rows run together.

    Returns:
        `(len(token_lists), width)` float32, in the given order.

    Raises:
        NumericError: the model produced NaN or infinity.
        ModelError: the model's answer is not `(batch, tokens, width)`.
    """
    order = sorted(range(len(token_lists)), key=lambda item: (len(token_lists[item]), item))
    parts: list[Tensor] = []
    for piece in in_batches(len(order), batch):
        inputs = pad([token_lists[item] for item in order[piece]], pad_id)
        hidden = first_tensor(model(**inputs))
        if hidden.ndim != 3:
            raise ModelError(
                f"A sentence encoder answers with (batch, tokens, width), got a tensor of shape {tuple(hidden.shape)}. "
                "Load the model without a head (AutoModel)."
            )
        parts.append(pool(hidden, inputs["attention_mask"]).float())
    stacked = torch.cat(parts)
    require_finite(stacked, "the sentence vectors of the model")
    vectors = torch.empty_like(stacked)
    vectors[torch.tensor(order)] = stacked
    return vectors


def pad_token(tokenizer: Any) -> int:
    """The tokenizer's padding token, 0 where it names none (masked positions are never read)."""
    number = getattr(tokenizer, "pad_token_id", None)
    return 0 if number is None else int(number)


def exact_length(token_lists: Sequence[Sequence[int]], count: int, length: int) -> Batch:
    """`count` rows of exactly `length` real tokens, made by joining lists, for timing."""
    stream = [token for ids in token_lists for token in ids] or [0]
    repeated = stream * (-(-count * length // len(stream)))
    ids = torch.tensor(repeated[: count * length], dtype=torch.int64).view(count, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
