"""Stage: open the test split once and compare our file with the dense model on it, item by item."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.tasks import Quality
from .compress import base_of
from .deliver import BUNDLE, reload_here
from .session import Session

RESAMPLES = 2000


def bootstrap_interval(differences: NDArray[np.float64], seed: int) -> list[float]:
    """Paired bootstrap 95 % interval of the mean (percentile method, Efron and Tibshirani 1993).

    Args:
        differences: `(n,)` dense - ours, per item.
        seed: of the resampling.
    """
    count = len(differences)
    generator = np.random.default_rng(seed)
    # In pieces, so that large test sets do not need a large table.
    means = [differences[generator.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]


def compare(ours: Quality, dense: Quality, seed: int) -> dict[str, Any]:
    """One split of the report: value, drop, paired standard error and interval, slices, further figures."""
    differences = dense.items - ours.items
    names = np.asarray(dense.slices)
    slices = []
    for name in np.unique(names):
        inside = names == name
        slices.append(
            {
                "name": str(name),
                "n": int(inside.sum()),
                "dense": float(dense.items[inside].mean()),
                "ours": float(ours.items[inside].mean()),
                "drop": float(differences[inside].mean()),
                "interval": bootstrap_interval(differences[inside], seed),
            }
        )
    extra: dict[str, Any] = {}
    for key, value in ours.extra.items():
        extra[key.replace("_", " ")] = {"dense": dense.extra[key], "ours": value} if key in dense.extra else value
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return {
        "dense": dense.value,
        "ours": ours.value,
        "drop": float(differences.mean()),
        "stderr": spread / float(np.sqrt(len(differences))),
        "interval": bootstrap_interval(differences, seed),
        "n": len(differences),
        "slices": slices,
        "extra": extra,
    }


def test_stage(session: Session, sha256: str) -> dict[str, Any]:
    """Score the dense model and the model in the file on the test split, which is opened here and nowhere else."""

    def work() -> dict[str, Any]:
        session.task.open_test()
        dense = session.score("dense", session.dense, "test")
        ours = session.score("ours", reload_here(session, session.folder.path / BUNDLE), "test")
        return compare(ours, dense, session.recipe.seed)

    return session.folder.stage("test", {"sha256": sha256, "base": base_of(session)}, work)
