"""How many bytes of gradients travelled between processes."""

from dataclasses import dataclass
from typing import final


@final
@dataclass
class GradientTraffic:
    """Bytes of one parameter's gradient that this process handed to all-reduce so far.

    Attributes:
        sent_bytes: what travelled.
        dense_bytes: what torch's default hook would have sent.
    """

    sent_bytes: int = 0
    dense_bytes: int = 0
