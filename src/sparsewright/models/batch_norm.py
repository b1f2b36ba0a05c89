"""Batch norm after sparsification: running moments that belong to the sparse weights."""

from typing import Any

import torch
from torch import nn

from .data import batches_of


def reestimate_batch_norm_(model: nn.Module, data: Any) -> int:
    """Forget the running mean and variance of every batch norm and take them anew from data.

    The mean over all batches counts each batch alike (momentum None, as PyTorch's cumulative average); only batch norms
    run in training mode meanwhile, so that dropout stays off.

    Args:
        model: changed in place; modes and momenta are restored.
        data: see `batches_of`; a few hundred images are enough.

    Returns:
        How many batch norms were re-estimated; 0 needs no data to be run.

    Raises:
        DataError: no data.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    batches = batches_of(data, model)
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in batches:
                batch.run(model)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return len(norms)
