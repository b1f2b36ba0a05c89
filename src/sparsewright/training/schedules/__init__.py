"""Mask schedules, one file each; importing this package registers them all."""

from .base import AbstractSchedule, MaskChange, Prices, Timing, schedules
from .evolutionary import SparseEvolutionary
from .exchange import exchange
from .fixed import Fixed
from .gradual import Gradual
from .one_shot import OneShot
from .periodic import Periodic
from .rigl import RigL
from .sr_ste import SparseRefined

__all__ = [
    "AbstractSchedule",
    "Fixed",
    "Gradual",
    "MaskChange",
    "OneShot",
    "Periodic",
    "Prices",
    "RigL",
    "SparseEvolutionary",
    "SparseRefined",
    "Timing",
    "exchange",
    "schedules",
]
