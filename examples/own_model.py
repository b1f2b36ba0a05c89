"""A model and a task of your own: two functions that a recipe names with `python:`.

The model here is a small multilayer perceptron on made data; replace both functions by yours.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sparsewright.models.tasks import AbstractTask, Quality


def build() -> nn.Module:
    """Your trained model. This one fits the made data below in closed form: nothing is downloaded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    inputs, labels = made_data(2000, seed=1)
    with torch.no_grad():
        features = model[:4](inputs)
        targets = nn.functional.one_hot(labels, 4).float()
        ridge = features.T @ features + 10.0 * torch.eye(256)
        head: nn.Linear = model[4]  # type: ignore[assignment]
        head.weight.copy_(torch.linalg.solve(ridge, features.T @ targets).T)
        head.bias.zero_()
    return model


def made_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four noisy clusters in 64 dimensions: inputs `(count, 64)`, labels `(count,)`."""
    centres = torch.randn(4, 64, generator=torch.Generator().manual_seed(42))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    return centres[labels] + 2.0 * torch.randn(count, 64, generator=generator), labels


class Clusters(AbstractTask):
    """Accuracy on the made data; every split has its own seed."""

    metric = "accuracy"

    def calibration(self) -> list[dict[str, Tensor]]:
        """Inputs for layer statistics."""
        return [{"input": made_data(256, seed=50 + number)[0]} for number in range(4)]

    def recovery(self) -> list[dict[str, Tensor]]:
        """Unlabelled inputs for distillation."""
        return [{"input": made_data(128, seed=100 + number)[0]} for number in range(16)]

    def bench_batch(self, batch: int, length: int) -> dict[str, Tensor]:
        """Inputs for timing; this model knows no sequence length."""
        return {"input": made_data(batch, seed=3)[0]}

    def describe(self) -> dict[str, Any]:
        """Counts for the report."""
        return {"validation": {"n": 1000}, "test": {"n": 1000}}

    def _score(self, model: nn.Module, split: str, reference: nn.Module | None) -> Quality:
        inputs, labels = made_data(1000, seed={"validation": 4, "test": 5}[split])
        right = (model(inputs).argmax(-1) == labels).double()
        return Quality(float(right.mean()), right.numpy(), [f"cluster {label}" for label in labels.tolist()])


def make_task() -> AbstractTask:
    """The task that the recipe names."""
    return Clusters()
