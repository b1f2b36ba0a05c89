"""Texts and their classes: accuracy of a text classifier on a user's own CSV files."""

import hashlib
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ...core import DataError, require_finite
from .base import AbstractTask, AbstractTaskKind, Batch, Quality, Split, first_tensor, in_batches, length_batches, tasks
from .encoding import exact_length, pad, pad_token, require_tokenizer, tokenize
from .pairs import read_rows

SCORE_BATCH = 64


@final
class TextClassification(AbstractTask):
    """Accuracy on labelled texts.

    Args:
        tokenizer: of the model, as transformers makes it.
        validation: CSV file, each row text, class number.
        train: CSV file of the same form, or of one text per row; labels in it are not used.
        test: CSV file of the same form for the end; optional.
        seed: fixes the order of batches.
        length: tokens a text is cut to.
        calibration_texts: texts for layer statistics.
        recovery_batch: texts in one recovery batch.

    Raises:
        ModelError: there is no tokenizer.
        DataError: a file is missing or has rows of another form.
    """

    metric = "accuracy"

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
        recovery_batch: int = 32,
    ) -> None:
        super().__init__()
        self.tokenizer = require_tokenizer(tokenizer, "text-classification")
        self.paths = {"validation": Path(validation), "train": Path(train)}
        if test is not None:
            self.paths["test"] = Path(test)
        self.seed = seed
        self.length = length
        self.calibration_texts = calibration_texts
        self.recovery_batch = recovery_batch

    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        if split not in self.paths:
            raise DataError(f"The task has no {split} file. Name one under `{split}` in the recipe.")
        texts, labels = read_labelled(self.paths[split])
        chosen = self._predict(model, texts)
        items = (chosen == torch.tensor(labels)).double().numpy()
        extra: dict[str, float] = {}
        if reference is not None:
            extra["agreement_with_dense"] = float((chosen == self._predict(reference, texts)).double().mean())
        return Quality(float(items.mean()), items, [f"class {label}" for label in labels], extra)

    def _predict(self, model: nn.Module, texts: list[str]) -> Tensor:
        tokens = tokenize(self.tokenizer, texts, self.length)
        order = sorted(range(len(tokens)), key=lambda item: (len(tokens[item]), item))
        chosen = torch.empty(len(tokens), dtype=torch.int64)
        for piece in in_batches(len(order), SCORE_BATCH):
            logits = first_tensor(model(**pad([tokens[item] for item in order[piece]], pad_token(self.tokenizer))))
            require_finite(logits, "class scores of the model")
            chosen[torch.tensor(order[piece])] = logits.argmax(-1)
        return chosen

    def _train_batches(self, size: int, seed: int, most: int | None) -> list[Batch]:
        texts = list(dict.fromkeys(row[0].strip() for row in read_rows(self.paths["train"]) if row[0].strip()))
        order = np.random.default_rng(seed).permutation(len(texts))[:most]
        tokens = tokenize(self.tokenizer, [texts[number] for number in order], self.length)
        groups = length_batches([len(ids) for ids in tokens], size, seed)
        return [pad([tokens[number] for number in group], pad_token(self.tokenizer)) for group in groups]

    def calibration(self) -> list[Batch]:
        """Batches of 32 texts of the train file, at most `calibration_texts` in all."""
        return self._train_batches(32, self.seed, self.calibration_texts)

    def recovery(self) -> list[Batch]:
        """All texts of the train file, `recovery_batch` in a batch."""
        return self._train_batches(self.recovery_batch, self.seed + 1, None)

    def bench_batch(self, batch: int, length: int) -> Batch:
        """Real tokens of train texts, every row full."""
        texts = [row[0] for row in read_rows(self.paths["train"])[:200]]
        return exact_length(tokenize(self.tokenizer, texts, self.length), batch, length)

    def describe(self) -> dict[str, Any]:
        """Names and sha256 of the files (the test file's only once it is open)."""
        known = {name: path for name, path in self.paths.items() if name != "test" or self.test_is_open}
        files = {
            name: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for name, path in known.items()
        }
        return {"task": "text-classification", "metric": self.metric, "length": self.length, "files": files}


@final
@tasks.register("text-classification")
class TextClassificationKind(AbstractTaskKind):
    """Own labelled texts for text classifiers."""

    task = TextClassification
    about = "text classifiers: your own texts and class numbers (CSV)"


def read_labelled(path: Path) -> tuple[list[str], list[int]]:
    """Texts and class numbers of a CSV file; a first row without a number is a header.

    Raises:
        DataError: a row of another form, with its number.
    """
    texts: list[str] = []
    labels: list[int] = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            text, label = row[0], int(row[1])
        except (IndexError, ValueError):
            if number == 1 and len(row) >= 2:
                continue
            raise DataError(
                f"{path}, row {number}: expected text, class number, got {len(row)} columns ending in {row[-1]!r}. "
                "Write classes as whole numbers in the order of the model's outputs."
            ) from None
        texts.append(text)
        labels.append(label)
    if not texts:
        raise DataError(f"{path} has no labelled texts below its header. Add some rows.")
    return texts, labels
