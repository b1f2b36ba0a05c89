"""Documentation retrieval: find the docstring a first sentence was cut from.

Query = first sentence of a standard library docstring, target = the rest. Each query is ranked among 100 candidates:
its target and 99 others of its split, in 20 fixed draws that are averaged. Labelled by construction, on every machine.
"""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core import DataError
from .base import AbstractTask, AbstractTaskKind, Batch, Quality, Split, length_batches, tasks
from .docstring_items import ItemsBySplit, load_items, load_recovery_texts
from .docstring_text import Docstring
from .encoding import encode, exact_length, pad, pad_token, require_tokenizer, tokenize

CANDIDATES = 100
DRAWS = 20
SMALLEST_SLICE = 30


@final
class DocstringRetrieval(AbstractTask):
    """Mean reciprocal rank of each docstring's rest among 100 candidates.

    Args:
        tokenizer: of the model, as transformers makes it.
        folder: keeps the item list and the recovery texts.
        seed: fixes splits, candidates and the order of batches.
        length: tokens a text is cut to.
        validation_items: least number of validation items.
        test_items: least number of test items.
        calibration_texts: texts for layer statistics.
        recovery_files: source files of installed packages read at most.
        recovery_texts: docstrings of installed packages taken at most (two texts each).
        recovery_length: tokens a recovery text is cut to; shorter makes cheaper steps.
        recovery_batch: texts in one recovery batch.

    Raises:
        ModelError: there is no tokenizer.
        DataError: too few items in this Python's standard library, or a changed item list.
    """

    metric = "MRR among 100"

    def __init__(
        self,
        *,
        tokenizer: Any,
        folder: Path,
        seed: int = 0,
        length: int = 64,
        validation_items: int = 1000,
        test_items: int = 1500,
        calibration_texts: int = 1024,
        recovery_files: int = 2000,
        recovery_texts: int = 20_000,
        recovery_length: int = 64,
        recovery_batch: int = 48,
    ) -> None:
        super().__init__()
        self.tokenizer = require_tokenizer(tokenizer, "docstring-retrieval")
        self.folder = Path(folder)
        self.seed = seed
        self.length = length
        self.calibration_texts = calibration_texts
        self.recovery_files = recovery_files
        self.recovery_texts = recovery_texts
        self.recovery_length = recovery_length
        self.recovery_batch = recovery_batch
        self._items: ItemsBySplit
        self._items, self._facts = load_items(self.folder, seed, validation_items, test_items)
        self._tokens: dict[str, list[list[int]]] = {}
        self._reference_vectors: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()

    def items(self, split: str) -> list[Docstring]:
        """Items of `calibration`, `validation`, or `test` once it is open.

        Raises:
            DataError: the test split is still shut.
        """
        if split == "test" and not self.test_is_open:
            raise DataError("The test items are handed out after open_test(), once, at the end.")
        return self._items[split]

    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        vectors = self._encode(model, split)
        count = len(vectors) // 2
        scores = (vectors[:count] @ vectors[count:].T).double()
        reciprocal, first = rank_among_candidates(scores, self.seed)
        extra = {"accuracy_at_1": float(first.mean())}
        if reference is not None:
            known = self._reference_vectors.setdefault(reference, {})
            if split not in known:
                known[split] = vectors if reference is model else self._encode(reference, split)
            extra["cosine_to_dense"] = float((vectors * known[split]).sum(-1).double().mean())
        return Quality(float(reciprocal.mean()), reciprocal, self._slices(split), extra)

    def _encode(self, model: nn.Module, split: str) -> Tensor:
        """Unit vectors, queries first, then targets: `(2 * items, width)`."""
        if split not in self._tokens:
            items = self._items[split]
            texts = [item.query for item in items] + [item.target for item in items]
            self._tokens[split] = tokenize(self.tokenizer, texts, self.length)
        return encode(model, self._tokens[split], pad_token(self.tokenizer))

    def _slices(self, split: str) -> list[str]:
        """Top-level package of each item; packages too small to say anything about are one slice."""
        sizes = Counter(item.package for item in self._items[split])
        return [
            item.package if sizes[item.package] >= SMALLEST_SLICE else "other packages" for item in self._items[split]
        ]

    @cached_property
    def _unlabelled(self) -> tuple[list[str], dict[str, Any]]:
        return load_recovery_texts(self.folder, self._items, self.seed, self.recovery_files, self.recovery_texts)

    def calibration(self) -> list[Batch]:
        """Batches of 64 texts in random mixture, at most `calibration_texts` in all."""
        texts = self._unlabelled[0]
        chosen = np.random.default_rng(self.seed).permutation(len(texts))[: self.calibration_texts]
        tokens = tokenize(self.tokenizer, [texts[number] for number in chosen], self.length)
        return self._batches(tokens, 64, self.seed)

    def recovery(self) -> list[Batch]:
        """Batches of similar length, `recovery_batch` texts each, in random order."""
        tokens = tokenize(self.tokenizer, self._unlabelled[0], self.recovery_length)
        return self._batches(tokens, self.recovery_batch, self.seed + 1)

    def _batches(self, tokens: list[list[int]], size: int, seed: int) -> list[Batch]:
        pad_id = pad_token(self.tokenizer)
        groups = length_batches([len(ids) for ids in tokens], size, seed)
        return [pad([tokens[number] for number in group], pad_id) for group in groups]

    def bench_batch(self, batch: int, length: int) -> Batch:
        """Real tokens of calibration texts, every row full."""
        texts = [item.target for item in self._items["calibration"][:200]]
        return exact_length(tokenize(self.tokenizer, texts, self.length), batch, length)

    def describe(self) -> dict[str, Any]:
        """Item counts, sha256 of the item list and of the unlabelled texts, Python version, rules of the score."""
        return {
            "task": "docstring-retrieval",
            "metric": self.metric,
            "candidates": CANDIDATES,
            "draws": DRAWS,
            "length": self.length,
            "items": self._facts,
            "unlabelled": self._unlabelled[1],
        }


@final
@tasks.register("docstring-retrieval")
class DocstringRetrievalKind(AbstractTaskKind):
    """Documentation retrieval for sentence encoders."""

    task = DocstringRetrieval
    about = "sentence encoders: find the docstring a first sentence was cut from (Python standard library)"


def rank_among_candidates(
    scores: Tensor, seed: int, candidates: int = CANDIDATES, draws: int = DRAWS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reciprocal rank of the right target among itself and random others.

    Args:
        scores: `(items, items)`, query by target; the right target is on the diagonal.
        seed: fixes the draws; the same for every model, so that models are compared pair by pair.
        candidates: right target included; all targets where there are fewer.
        draws: how often the others are drawn.

    Returns:
        Mean reciprocal rank and share of first places of each item over the draws, `(items,)` float64 each. A tie
        counts against the model, so that one that maps everything to one point earns nothing.
    """
    count = len(scores)
    others = min(candidates, count) - 1
    ahead = scores >= scores.diagonal().unsqueeze(1)
    ahead.fill_diagonal_(False)
    generator = torch.Generator().manual_seed(seed)
    reciprocal = torch.zeros(count, dtype=torch.float64)
    first = torch.zeros(count, dtype=torch.float64)
    for _ in range(draws):
        keys = torch.rand(count, count, generator=generator).fill_diagonal_(-1.0)
        drawn = keys.topk(others, dim=1).indices
        rank = 1.0 + ahead.gather(1, drawn).sum(1).double()
        reciprocal += 1.0 / rank
        first += rank == 1
    return (reciprocal / draws).numpy(), (first / draws).numpy()
