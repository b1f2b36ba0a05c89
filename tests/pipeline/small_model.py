"""A model and a task small enough to be compressed in seconds; named by recipes through `python:`."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsewright.models.tasks import AbstractTask, Quality


def build() -> nn.Module:
    """Two hidden layers, fitted to the made data in closed form."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    inputs, labels = made_data(1000, seed=1)
    with torch.no_grad():
        features = model[:4](inputs)
        ridge = features.T @ features + 10.0 * torch.eye(128)
        head: Any = model[4]
        head.weight.copy_(torch.linalg.solve(ridge, features.T @ nn.functional.one_hot(labels, 4).float()).T)
        head.bias.zero_()
    return model


def build_with_nan() -> nn.Module:
    """The same with one weight that is not a number."""
    model = build()
    with torch.no_grad():
        first: Any = model[0]
        first.weight[3, 5] = float("nan")
    return model


def made_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four noisy clusters in 64 dimensions."""
    centres = torch.randn(4, 64, generator=torch.Generator().manual_seed(42))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    return centres[labels] + 2.0 * torch.randn(count, 64, generator=generator), labels


class Clusters(AbstractTask):
    """Accuracy on the made data."""

    metric = "accuracy"

    def calibration(self) -> list[dict[str, Tensor]]:
        return [{"input": made_data(128, seed=50)[0]}]

    def recovery(self) -> list[dict[str, Tensor]]:
        return [{"input": made_data(64, seed=100 + number)[0]} for number in range(8)]

    def bench_batch(self, batch: int, length: int) -> dict[str, Tensor]:
        return {"input": made_data(batch, seed=3)[0]}

    def describe(self) -> dict[str, Any]:
        return {"validation": {"n": 500}, "test": {"n": 500}}

    def _score(self, model: nn.Module, split: str, reference: nn.Module | None) -> Quality:
        inputs, labels = made_data(500, seed={"validation": 4, "test": 5}[split])
        right = (model(inputs).argmax(-1) == labels).double()
        return Quality(float(right.mean()), right.numpy(), [f"cluster {label}" for label in labels.tolist()])


def make_task() -> AbstractTask:
    return Clusters()
