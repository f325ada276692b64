"""A made-up training run that keeps snapshots of the averages of its weights."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldm.diffusion.ema import gamma_of, shares
from ldm.models.loading.model import ModelParts
from train.loop.averages import AverageSettings, WeightAverages, save_snapshot

NUM_STEPS, EVERY = 60, 5
SETTINGS = AverageSettings(widths=(0.05, 0.1), snapshot_every=EVERY)


def task_of(parts: ModelParts) -> nn.Module:
    """A module whose weights have the same names as in the program `denoiser`."""
    return nn.ModuleDict({"denoiser": parts.denoiser, "text_encoder": parts.text_encoder})


def walk(parts: ModelParts, run: Path, width: float) -> dict[str, Tensor]:
    """Move the trained weights at random, keep snapshots, and return the average of `width` in closed form."""
    averages = WeightAverages(task_of(parts), 0.0, SETTINGS)
    share = shares(NUM_STEPS, gamma_of(width), np.arange(1.0, NUM_STEPS + 1))
    expected = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in averages.live.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, NUM_STEPS + 1):
        for name, weight in averages.live.items():
            weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
            expected[name] += float(share[step - 1]) * weight.detach().double()
        averages.update(step)
        if step % EVERY == 0:
            save_snapshot(averages, step, run / "averages")
    return {name: tensor.float() for name, tensor in expected.items()}
