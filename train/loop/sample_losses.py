"""The loss of each sample by itself, always with the same noise, as `ldm ledger` compares them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batches import collate

from .steps import to_device
from .validation import ValidationSamples, evaluating


@torch.no_grad()
def sample_losses(
    module: nn.Module,
    samples: ValidationSamples,
    *,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """[N, K] in float64: the loss of each of N samples at its K fixed noise levels, in evaluation mode.

    The mean over a batch's rows is the loss that the module gives that batch.

    Args:
        module: maps a batch to per-sample tensors, including `loss` [b].
        on_progress: called with the number of samples done.
    """
    losses = torch.zeros(len(samples), samples.num_draws, dtype=torch.float64)
    done = 0
    with evaluating(module):
        for keys in samples.batches(batch_size):
            batch = collate([item for key in keys for item in samples[key]])
            on_device = {
                name: to_device(value, device) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }
            with autocast():
                found = module(on_device)["loss"].double().cpu()
            losses[[key.sample_index for key in keys]] = found.view(len(keys), samples.num_draws)
            done += len(keys)
            on_progress(done)
    return losses
