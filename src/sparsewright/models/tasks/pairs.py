"""Labelled sentence pairs: does the model call similar what people call similar?

Source: Agirre et al. 2012, SemEval-2012 task 6 (semantic textual similarity); Spearman's rank correlation between
cosine and the people's scores. Each pair's share is the product of its two standardised ranks, whose mean is exactly
the correlation, so that two models can be compared pair by pair.
"""

import math
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core import DataError
from .base import AbstractTaskKind, Quality, Split, tasks
from .encoding import encode, pad_token, tokenize
from .files import AbstractTextsTask, read_rows


@final
class SentencePairs(AbstractTextsTask):
    """Spearman correlation of cosines with people's scores.

    Args:
        tokenizer: of the model, as transformers makes it.
        validation: CSV file, each row sentence, sentence, score.
        train: CSV file of the same form, or of one text per row; only its texts are used (calibration, recovery).
        test: CSV file of the same form for the end; `validation` must not be named again.
        seed: fixes the order of batches.
        length: tokens a sentence is cut to.
        calibration_texts: sentences for layer statistics.
        recovery_batch: sentences in one recovery batch.

    Raises:
        ModelError: there is no tokenizer.
        DataError: a file is missing or has rows of another form.
    """

    metric = "Spearman"
    kind = "sentence-pairs"
    calibration_batch = 64

    def __init__(
        self,
        *,
        tokenizer: Any,
        validation: str | Path,
        train: str | Path,
        test: str | Path | None = None,
        seed: int = 0,
        length: int = 128,
        calibration_texts: int = 512,
        recovery_batch: int = 64,
    ) -> None:
        super().__init__(
            tokenizer,
            validation,
            train,
            test,
            seed=seed,
            length=length,
            calibration_texts=calibration_texts,
            recovery_batch=recovery_batch,
        )
        self._reference_vectors: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()

    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        pairs = read_pairs(self.path(split))
        texts = [first for first, _, _ in pairs] + [second for _, second, _ in pairs]
        vectors = self._encode(model, texts)
        cosine = (vectors[: len(pairs)] * vectors[len(pairs) :]).sum(-1).double().numpy()
        items = standard_ranks(cosine) * standard_ranks(np.array([score for _, _, score in pairs]))
        extra: dict[str, float] = {}
        if reference is not None:
            known = self._reference_vectors.setdefault(reference, {})
            if split not in known:
                known[split] = vectors if reference is model else self._encode(reference, texts)
            extra["cosine_to_dense"] = float((vectors * known[split]).sum(-1).double().mean())
        return Quality(float(items.mean()), items, ["all"] * len(pairs), extra)

    def _encode(self, model: nn.Module, texts: list[str]) -> Tensor:
        return encode(model, tokenize(self.tokenizer, texts, self.length), pad_token(self.tokenizer))

    def train_texts(self) -> list[str]:
        """All sentences of the train file."""
        return read_texts(self.path("train"))


@final
@tasks.register("sentence-pairs")
class SentencePairsKind(AbstractTaskKind):
    """Sentence similarity for sentence encoders."""

    task = SentencePairs
    about = "sentence encoders: Spearman correlation with people's scores of sentence pairs (CSV)"


def standard_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks (ties share their mean rank) shifted and scaled to mean 0, variance 1; all 0 where all values are equal."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[inverse].astype(np.float64)
    spread = float(ranks.std())
    return (ranks - ranks.mean()) / spread if spread else np.zeros_like(ranks)


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Sentence, sentence, score of every row.

    Raises:
        DataError: a row of another form, with its number.
    """
    pairs: list[tuple[str, str, float]] = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            first, second, score = row[0], row[1], float(row[2])
        except (IndexError, ValueError):
            if number == 1 and len(row) >= 3:
                continue  # a header
            raise DataError(
                f"{path}, row {number}: expected sentence, sentence, score, got {len(row)} columns ending in "
                f"{row[-1]!r}. Quote sentences that hold commas."
            ) from None
        if not math.isfinite(score):
            raise DataError(f"{path}, row {number}: the score must be finite, got {row[2]}. Remove the row.")
        pairs.append((first, second, score))
    if len(pairs) < 2:
        raise DataError(f"{path} has {len(pairs)} pairs; a rank correlation needs at least two.")
    return pairs


def read_texts(path: Path) -> list[str]:
    """Every different text of the file: both sentences of a pair, or the first column; scores and numbers left out."""
    texts = [cell for row in read_rows(path) for cell in (row[:2] if len(row) >= 3 else row[:1])]
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))
