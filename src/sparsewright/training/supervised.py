"""Plain supervised training of a dense classifier, for recipes that begin before the model is trained.

Source: AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101, with a cosine schedule and a short warm-up.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core import DataError, NumericError
from ..models.tasks import first_tensor

LabelledBatch = tuple[dict[str, Any], Tensor]


def train_classifier(
    model: nn.Module,
    batches: Sequence[LabelledBatch],
    *,
    steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
    vary: Callable[[dict[str, Any], torch.Generator], dict[str, Any]] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train in place on labelled batches; the same seed and threads give the same bits.

    Args:
        model: called `model(**inputs)`; logits `(batch, classes)` are its main output.
        batches: inputs by name, and labels `(batch,)` int64; run through in a random order again and again.
        steps: optimiser steps.
        lr: peak learning rate.
        weight_decay: of AdamW.
        seed: of dropout, of the order of batches and of what `vary` draws.
        vary: makes another batch of the same labels out of the inputs at every step; None takes them as they are.
        progress: called after every step with (steps done, steps in all, loss).

    Returns:
        Cross-entropy of every step. The model is left in eval mode.

    Raises:
        DataError: no batches.
        NumericError: the loss became NaN or infinite.
    """
    if not batches:
        raise DataError("Training needs at least one labelled batch; the task gave none.")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    warmup = max(1, steps // 20)
    losses: list[float] = []
    order: list[int] = []
    model.train()
    for step in range(steps):
        if not order:
            order = torch.randperm(len(batches), generator=generator).tolist()
        inputs, labels = batches[order.pop()]
        share = (step - warmup) / max(1, steps - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        if vary is not None:
            inputs = vary(inputs, generator)
        loss = functional.cross_entropy(first_tensor(model(**inputs)), labels)
        if not math.isfinite(loss.item()):
            raise NumericError(
                f"Training met a loss of {loss.item()} at step {step + 1}. Lower the learning rate ({lr})."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, steps, losses[-1])
    model.eval()
    return losses
