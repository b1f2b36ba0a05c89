"""Scikit-learn's digits: a real image task that every machine has.

1,797 images of 8 x 8 pixels, ten classes. Source: Alpaydin and Kaynak 1998, UCI repository, as shipped by scikit-learn.
"""

from typing import final

import numpy as np
import torch

from ...core import DataError, MissingPackageError
from .base import AbstractTaskKind, tasks
from .images import AbstractImageTask, LabelledImages


@final
class Digits(AbstractImageTask):
    """Scikit-learn's digits, enlarged, in one fixed split: 897 train, 400 validation, 500 test.

    Args:
        size: height and width in pixels the 8 x 8 images are enlarged to, a multiple of 8.
        channels: 1, or 3 for models that expect colour (three equal ones).
        argument: the name of the image argument in the model's forward.
        batch: images in one batch.
        calibration: images for layer statistics.
        seed: fixes the order of batches; the split itself never changes.

    Raises:
        MissingPackageError: scikit-learn is not installed.
        DataError: `size` is not a multiple of 8.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        channels: int = 3,
        argument: str = "x",
        batch: int = 64,
        calibration: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(load_digits_splits(size, channels), argument, batch, calibration, seed)


@final
@tasks.register("digits")
class DigitsKind(AbstractTaskKind):
    """Handwritten digits for image classifiers."""

    task = Digits
    about = "image classifiers: scikit-learn's handwritten digits, ten classes"


def load_digits_splits(size: int, channels: int) -> dict[str, LabelledImages]:
    """The digits as normalised float images in their fixed split; see `Digits`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError(
            "The digits task needs scikit-learn. Install it with: pip install scikit-learn"
        ) from error
    if size % 8 or size < 8:
        raise DataError(f"Digits are enlarged from 8 x 8 to a multiple of 8 pixels, got size={size}. Use 32, say.")
    digits = load_digits()
    order = np.random.default_rng(1998).permutation(len(digits.target))
    pixels = torch.tensor(digits.images[order], dtype=torch.float32)
    pixels = (pixels / 16.0 - 0.3) / 0.37  # about mean 0, variance 1 over the train part
    pixels = pixels.repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)
    pixels = pixels.unsqueeze(1).expand(-1, channels, -1, -1).contiguous()
    labels = torch.tensor(digits.target[order], dtype=torch.int64)
    borders = {"train": slice(0, 897), "validation": slice(897, 1297), "test": slice(1297, 1797)}
    return {name: LabelledImages(pixels[part], labels[part]) for name, part in borders.items()}
