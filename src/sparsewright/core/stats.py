"""What calibration keeps of a layer's inputs: moments, never the data."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from .errors import DataError
from .numeric import require_finite


@final
@dataclass(frozen=True)
class LayerStats:
    """Moments of the inputs of one layer, over all calibration tokens.

    Attributes:
        tokens: number of input rows seen.
        mean: `(in,)` float64.
        square_sum: `(in,)` float64, sum of squares per input.
        gram: `(in, in)` float64, `X^T X` summed over tokens, or None where no sparsifier asked for it.
    """

    tokens: int
    mean: Tensor
    square_sum: Tensor
    gram: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise DataError("Calibration saw no tokens for this layer. Give data that reaches it, or exclude it.")
        require_finite(self.square_sum, "calibration statistics")

    @property
    def norm(self) -> Tensor:
        """`(in,)` float64, root mean square of each input (Wanda's factor up to a constant)."""
        return (self.square_sum / self.tokens).sqrt()
