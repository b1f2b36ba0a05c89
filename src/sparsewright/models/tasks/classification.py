"""Texts and their classes: accuracy of a text classifier on a user's own CSV files."""

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ...core import DataError, require_finite
from .base import AbstractTaskKind, Quality, Split, first_tensor, in_batches, tasks
from .encoding import pad, pad_token, tokenize
from .files import AbstractTextsTask, read_rows

SCORE_BATCH = 64


@final
class TextClassification(AbstractTextsTask):
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
    kind = "text-classification"
    calibration_batch = 32

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

    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        texts, labels = read_labelled(self.path(split))
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

    def train_texts(self) -> list[str]:
        """First column of the train file."""
        return list(dict.fromkeys(row[0].strip() for row in read_rows(self.path("train")) if row[0].strip()))


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
