"""Tasks on a user's own text files, named split by split in the recipe."""

import csv
import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...core import DataError
from .base import AbstractTask, Batch, length_batches
from .encoding import exact_length, pad, pad_token, require_tokenizer, tokenize


class AbstractFileTask(AbstractTask):
    """Validation, train and perhaps test files, and the tokenizer that reads them.

    Args:
        tokenizer: of the model, as transformers makes it.
        validation, train, test: files; `test` may be missing, and is no file that is named already.
        seed: fixes the order of batches.
        length: tokens that a text is cut to.

    Raises:
        ModelError: there is no tokenizer.
        DataError: the same file is named as validation and as test.
    """

    kind: ClassVar[str]
    """Name in the registry of tasks."""

    def __init__(
        self,
        tokenizer: Any,
        validation: str | Path,
        train: str | Path,
        test: str | Path | None,
        *,
        seed: int,
        length: int,
    ) -> None:
        super().__init__()
        self.tokenizer = require_tokenizer(tokenizer, self.kind)
        self.paths = {"validation": Path(validation), "train": Path(train)}
        if test is not None:
            if Path(test).resolve() == self.paths["validation"].resolve():
                raise DataError(f"{test} is named as validation and as test. Give two different files.")
            self.paths["test"] = Path(test)
        self.seed = seed
        self.length = length

    def path(self, split: str) -> Path:
        """File of a split.

        Raises:
            DataError: the recipe names none.
        """
        if split not in self.paths:
            raise DataError(f"The task has no {split} file. Name one under `{split}` in the recipe.")
        return self.paths[split]

    def describe(self) -> dict[str, Any]:
        """Names and sha256 of the files (the test file's only once it is open)."""
        known = {name: path for name, path in self.paths.items() if name != "test" or self.test_is_open}
        files = {
            name: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for name, path in known.items()
        }
        return {"task": self.kind, "metric": self.metric, "length": self.length, "files": files}


class AbstractTextsTask(AbstractFileTask):
    """Files of single texts: those of the train file calibrate and recover, labels left out.

    Args:
        calibration_texts: texts for layer statistics.
        recovery_batch: texts in one recovery batch.
    """

    calibration_batch: ClassVar[int]

    def __init__(self, *files: Any, seed: int, length: int, calibration_texts: int, recovery_batch: int) -> None:
        super().__init__(*files, seed=seed, length=length)
        self.calibration_texts = calibration_texts
        self.recovery_batch = recovery_batch

    @abstractmethod
    def train_texts(self) -> list[str]:
        """Every different text of the train file."""

    def _train_batches(self, size: int, seed: int, most: int | None) -> list[Batch]:
        texts = self.train_texts()
        order = np.random.default_rng(seed).permutation(len(texts))[:most]
        tokens = tokenize(self.tokenizer, [texts[number] for number in order], self.length)
        groups = length_batches([len(ids) for ids in tokens], size, seed)
        return [pad([tokens[number] for number in group], pad_token(self.tokenizer)) for group in groups]

    def calibration(self) -> list[Batch]:
        """Random texts of the train file, at most `calibration_texts`."""
        return self._train_batches(self.calibration_batch, self.seed, self.calibration_texts)

    def recovery(self) -> list[Batch]:
        """All texts of the train file, `recovery_batch` in a batch."""
        return self._train_batches(self.recovery_batch, self.seed + 1, None)

    def bench_batch(self, batch: int, length: int) -> Batch:
        """Real tokens of train texts, every row full."""
        return exact_length(tokenize(self.tokenizer, self.train_texts()[:200], self.length), batch, length)


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
