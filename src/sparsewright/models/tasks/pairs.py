"""Labelled sentence pairs: does the model call similar what people call similar?

Source: Agirre et al. 2012, SemEval-2012 task 6 (semantic textual similarity); Spearman's rank correlation between
cosine and the people's scores. Each pair's share is the product of its two standardised ranks, whose mean is exactly
the correlation, so that two models can be compared pair by pair.
"""

import csv
import hashlib
import math
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core import DataError
from .base import AbstractTask, AbstractTaskKind, Batch, Quality, Split, length_batches, tasks
from .encoding import encode, exact_length, pad, pad_token, require_tokenizer, tokenize


@final
class SentencePairs(AbstractTask):
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
        super().__init__()
        self.tokenizer = require_tokenizer(tokenizer, "sentence-pairs")
        self.paths = {"validation": Path(validation), "train": Path(train)}
        if test is not None:
            if Path(test).resolve() == self.paths["validation"].resolve():
                raise DataError(f"{test} is named as validation and as test. Give two files of different pairs.")
            self.paths["test"] = Path(test)
        self.seed = seed
        self.length = length
        self.calibration_texts = calibration_texts
        self.recovery_batch = recovery_batch
        self._reference_vectors: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()

    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        pairs = read_pairs(self._path(split))
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

    def _path(self, split: str) -> Path:
        if split not in self.paths:
            raise DataError(f"The task has no {split} file. Name one under `{split}` in the recipe.")
        return self.paths[split]

    def _encode(self, model: nn.Module, texts: list[str]) -> Tensor:
        return encode(model, tokenize(self.tokenizer, texts, self.length), pad_token(self.tokenizer))

    def _train_batches(self, size: int, seed: int, most: int | None) -> list[Batch]:
        texts = read_texts(self.paths["train"])
        order = np.random.default_rng(seed).permutation(len(texts))[:most]
        tokens = tokenize(self.tokenizer, [texts[number] for number in order], self.length)
        groups = length_batches([len(ids) for ids in tokens], size, seed)
        return [pad([tokens[number] for number in group], pad_token(self.tokenizer)) for group in groups]

    def calibration(self) -> list[Batch]:
        """Batches of 64 sentences of the train file, at most `calibration_texts` in all."""
        return self._train_batches(64, self.seed, self.calibration_texts)

    def recovery(self) -> list[Batch]:
        """All sentences of the train file, `recovery_batch` in a batch."""
        return self._train_batches(self.recovery_batch, self.seed + 1, None)

    def bench_batch(self, batch: int, length: int) -> Batch:
        """Real tokens of train sentences, every row full."""
        texts = read_texts(self.paths["train"])[:200]
        return exact_length(tokenize(self.tokenizer, texts, self.length), batch, length)

    def describe(self) -> dict[str, Any]:
        """Names and sha256 of the files (the test file's only once it is open)."""
        known = {name: path for name, path in self.paths.items() if name != "test" or self.test_is_open}
        files = {
            name: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for name, path in known.items()
        }
        return {"task": "sentence-pairs", "metric": self.metric, "length": self.length, "files": files}


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


def read_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV file, empty ones left out.

    Raises:
        DataError: the file cannot be read, or has no rows.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}. Check the path and the encoding.") from error
    if not rows:
        raise DataError(f"{path} has no rows. Give a CSV file with at least one.")
    return rows


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
