"""Images and their labels: top-1 accuracy of a user's own images.

They come as one npz file per split with `images` and `labels`; pickled arrays are refused.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ...core import DataError, require_finite
from .base import AbstractTask, AbstractTaskKind, Batch, Quality, Split, first_tensor, in_batches, sha256_of, tasks

SCORE_BATCH = 128


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split.

    Attributes:
        pixels: `(items, channels, height, width)` float32, normalised.
        labels: `(items,)` int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def shifted(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image moved by its own random number of pixels, edges repeated.

    Args:
        pixels: `(items, channels, height, width)`.
        most: largest shift each way, in pixels.
        generator: of the shifts.

    Returns:
        Images of the same shape.
    """
    if most == 0:
        return pixels
    items, _, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (most,) * 4, mode="replicate")
    down, right = (torch.randint(2 * most + 1, (items,), generator=generator) for _ in range(2))
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    item = torch.arange(items)[:, None, None, None]
    channel = torch.arange(pixels.shape[1])[None, :, None, None]
    return padded[item, channel, rows, columns]


class AbstractImageTask(AbstractTask):
    """Top-1 accuracy; the model is called `model(pixels)` under the name its forward gives its first argument."""

    metric = "top-1 accuracy"

    def __init__(self, splits: Mapping[str, LabelledImages], argument: str, batch: int, calibration: int, seed: int):
        super().__init__()
        self.splits = dict(splits)
        self.argument = argument
        self.batch = batch
        self.calibration_images = calibration
        self.seed = seed

    def _score(self, model: nn.Module, split: Split, reference: nn.Module | None) -> Quality:
        if split not in self.splits:
            raise DataError(f"The task has no {split} images. Name a file under `{split}` in the recipe.")
        images = self.splits[split]
        chosen = self._predict(model, images)
        items = (chosen == images.labels).double().numpy()
        extra: dict[str, float] = {}
        if reference is not None:
            extra["agreement_with_dense"] = float((chosen == self._predict(reference, images)).double().mean())
        return Quality(float(items.mean()), items, [f"class {label}" for label in images.labels.tolist()], extra)

    def _predict(self, model: nn.Module, images: LabelledImages) -> Tensor:
        logits = [
            first_tensor(model(**{self.argument: images.pixels[piece]}))
            for piece in in_batches(len(images), SCORE_BATCH)
        ]
        scores = torch.cat(logits)
        require_finite(scores, "class scores of the model")
        return scores.argmax(-1)

    def calibration(self) -> list[Batch]:
        """Train images in a random order, at most `calibration` of them."""
        return self._train_batches(self.seed)[: max(1, self.calibration_images // self.batch)]

    def recovery(self) -> list[Batch]:
        """All train images without their labels, in a random order."""
        return self._train_batches(self.seed + 1)

    def _train_batches(self, seed: int) -> list[Batch]:
        pixels = self.splits["train"].pixels
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
        return [{self.argument: pixels[order[piece]]} for piece in in_batches(len(order), self.batch)]

    def labelled_train(self) -> LabelledImages:
        """The train split with its labels, for training a model before it is made sparse."""
        return self.splits["train"]

    def bench_batch(self, batch: int, length: int) -> Batch:
        """`batch` train images; `length` has no meaning for images."""
        pixels = self.splits["train"].pixels
        return {self.argument: pixels[torch.arange(batch) % len(pixels)]}

    def describe(self) -> dict[str, Any]:
        """Counts and sha256 per split."""
        digests = {
            name: {
                "items": len(images),
                "sha256": sha256_of([images.pixels.numpy().tobytes(), images.labels.numpy().tobytes()]),
            }
            for name, images in self.splits.items()
        }
        return {"task": type(self).__name__, "metric": self.metric, "splits": digests}


@final
class ImageClassification(AbstractImageTask):
    """A user's own labelled images.

    Args:
        train: npz file with `images` (uint8 or floating point, `(items, height, width[, channels])`) and `labels`.
        validation: the same for validation.
        test: the same for the end; optional.
        mean: subtracted per channel, of pixels in 0..1; one number or one per channel.
        std: what is left is divided by it.
        argument: the name of the image argument in the model's forward.
        batch: images in one batch.
        calibration: images for layer statistics.
        seed: fixes the order of batches.

    Raises:
        DataError: a file is missing, holds pickled objects, or arrays of another form.
    """

    def __init__(
        self,
        *,
        train: str | Path,
        validation: str | Path,
        test: str | Path | None = None,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
        argument: str = "x",
        batch: int = 64,
        calibration: int = 512,
        seed: int = 0,
    ) -> None:
        named = {"train": train, "validation": validation, **({} if test is None else {"test": test})}
        loaded = {name: load_images(Path(path), mean, std) for name, path in named.items()}
        super().__init__(loaded, argument, batch, calibration, seed)


@final
@tasks.register("image-classification")
class ImageClassificationKind(AbstractTaskKind):
    """Own images for image classifiers."""

    task = ImageClassification
    about = "image classifiers: your own images and labels (npz)"


def load_images(path: Path, mean: float | list[float], std: float | list[float]) -> LabelledImages:
    """Read one npz file; see `ImageClassification`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as npz with the plain arrays `images` and `labels`: {error}. "
            "Write it with numpy.savez(path, images=..., labels=...)."
        ) from error
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
        raise DataError(
            f"{path}: images are (items, height, width[, channels]) and labels (items,), got {images.shape} and "
            f"{labels.shape}. Reshape them before saving."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: labels are class numbers, got {labels.dtype}. Save them as integers.")
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float()
    if images.dtype == np.uint8:
        pixels = pixels / 255.0
    channels = pixels.shape[1]
    shift, scale = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
    if {len(shift), len(scale)} - {1, channels} or not bool((scale > 0).all()):
        raise DataError(f"{path}: `mean` and `std` are one number or {channels}, and `std` is positive.")
    pixels = ((pixels - shift) / scale).contiguous()
    require_finite(pixels, f"images of {path}")
    return LabelledImages(pixels, torch.tensor(labels.astype(np.int64)))
