"""Plain text and its next tokens: how well a causal language model predicts a user's own text.

The score is the negative logarithm of the perplexity (the mean log-likelihood of a token, in nats): higher is better,
and differences are relative: 0.01 lost is one per cent more perplexity.
"""

from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core import DataError, require_finite
from .base import AbstractTaskKind, Batch, Quality, Split, first_tensor, in_batches, tasks
from .encoding import exact_length
from .files import AbstractFileTask

SCORE_BATCH = 8


@final
class TextLM(AbstractFileTask):
    """Negative log perplexity of text files, cut into windows of equal length.

    Args:
        tokenizer: of the model, as transformers makes it.
        validation: text file in UTF-8.
        train: text file in UTF-8 for calibration and recovery.
        test: text file for the end; optional.
        seed: fixes the order of batches.
        length: tokens in a window; every token but the first of a window is predicted.
        most_windows: windows scored at most, from the start of the file.
        calibration_windows: windows for layer statistics.
        recovery_batch: windows in one recovery batch.

    Raises:
        ModelError: there is no tokenizer.
        DataError: a file is missing, or too short for one window.
    """

    metric = "negative log perplexity"
    kind = "text-lm"

    def __init__(
        self,
        *,
        tokenizer: Any,
        validation: str | Path,
        train: str | Path,
        test: str | Path | None = None,
        seed: int = 0,
        length: int = 128,
        most_windows: int = 500,
        calibration_windows: int = 256,
        recovery_batch: int = 8,
    ) -> None:
        super().__init__(tokenizer, validation, train, test, seed=seed, length=length)
        self.most_windows = most_windows
        self.calibration_windows = calibration_windows
        self.recovery_batch = recovery_batch
        self._windows: dict[str, Tensor] = {}

    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        windows = self.windows(split)[: self.most_windows]
        items = self._log_likelihood(model, windows)
        extra = {"perplexity": float(np.exp(-items.mean()))}
        if reference is not None:
            extra["perplexity_of_dense"] = float(np.exp(-self._log_likelihood(reference, windows).mean()))
        return Quality(float(items.mean()), items, ["all"] * len(items), extra)

    def _log_likelihood(self, model: nn.Module, windows: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean log-likelihood of a predicted token, per window, `(windows,)` float64."""
        parts: list[Tensor] = []
        for piece in in_batches(len(windows), SCORE_BATCH):
            ids = windows[piece]
            logits = first_tensor(model(input_ids=ids, attention_mask=torch.ones_like(ids)))
            require_finite(logits, "next-token scores of the model")
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
            )
            parts.append(-loss.view(len(ids), -1).double().mean(1))
        return torch.cat(parts).numpy()

    def windows(self, name: str) -> Tensor:
        """All whole windows of a file, `(windows, length)` int64; the rest at the end is dropped."""
        if name not in self._windows:
            path = self.path(name)
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read as UTF-8 text: {error}. Check the path.") from error
            # Line by line: tokenisers are made for sentences, and one huge string is slow.
            encoded = self.tokenizer(text.splitlines(keepends=True) or [""], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([token for line in encoded for token in line], dtype=torch.int64)
            count = len(ids) // self.length
            if not count:
                raise DataError(
                    f"{path} has {len(ids)} tokens, fewer than one window of {self.length}. Give a longer text or a "
                    "smaller `length`."
                )
            self._windows[name] = ids[: count * self.length].view(count, self.length)
        return self._windows[name]

    def _train_batches(self, seed: int, most: int | None) -> list[Batch]:
        windows = self.windows("train")
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:most]
        pieces = [windows[order[piece]] for piece in in_batches(len(order), self.recovery_batch)]
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in pieces]

    def calibration(self) -> list[Batch]:
        """Random windows of the train file, at most `calibration_windows`."""
        return self._train_batches(self.seed, self.calibration_windows)

    def recovery(self) -> list[Batch]:
        """All windows of the train file in a random order."""
        return self._train_batches(self.seed + 1, None)

    def bench_batch(self, batch: int, length: int) -> Batch:
        """Real tokens of the train file, every row full."""
        return exact_length(self.windows("train")[:64].tolist(), batch, length)


@final
@tasks.register("text-lm")
class TextLMKind(AbstractTaskKind):
    """Own text for causal language models."""

    task = TextLM
    about = "causal language models: negative log perplexity of your own text files"
