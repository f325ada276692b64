"""Learning rate, optimizer and the moving average of the weights; the unit of all is the optimizer step."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .settings import OptimSettings


def learning_rate_at(step: int, num_steps: int, settings: OptimSettings) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then constant or half a cosine."""
    peak, warmup = settings.learning_rate, settings.num_warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.lr_schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    floor = settings.final_lr_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimSettings) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices and kernels only, not on biases and norms."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (0.9, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class WeightAverage:
    """An exponential moving average of the trained weights.

    average <- average + (1 - d) (weight - average), d = min(decay, (1 + step)/(10 + step)): the ramp lets a short run
    forget its random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_(list(self.average.values()), list(self.live.values()), 1 - decay)

    @torch.no_grad()
    def load(self, average: dict[str, Tensor]) -> None:
        """Take the average from a checkpoint; the names and shapes must be the same."""
        assert average.keys() == self.average.keys()
        for name, tensor in average.items():
            self.average[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module carries the averaged weights inside the block, its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.live.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)
