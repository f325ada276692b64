"""Loss-aware importance sampling of timesteps, section 3.3 of Nichol & Dhariwal 2021.

Timesteps with large losses are sampled more often, and their losses count less, so that the mean loss stays the same
and its estimate has less variance:

    p_t proportional to sqrt(E[L_t^2]),    loss L_t / (T p_t)        Eq. 18

The expectation is that of the last `HISTORY` losses of each timestep. Until all of them are known, sampling is uniform.
"""

from typing import Any

import torch
from torch import Tensor

HISTORY = 10
"""How many losses of each timestep are remembered."""

UNIFORM_SHARE = 0.001
"""The part of the samples that is drawn uniformly, so that no timestep is forgotten."""


class LossHistory:
    """The last losses of each timestep.

    Attributes:
        losses: [T, HISTORY], the newest last; of float64, on the CPU.
        counts: how many of them are known, [T].
    """

    def __init__(self, num_timesteps: int) -> None:
        self.losses = torch.zeros(num_timesteps, HISTORY, dtype=torch.float64)
        self.counts = torch.zeros(num_timesteps, dtype=torch.long)

    @property
    def is_complete(self) -> bool:
        """Whether each timestep has all of its losses."""
        return bool((self.counts == HISTORY).all())

    def probabilities(self) -> Tensor:
        """p_t of each timestep, [T]."""
        count = len(self.counts)
        uniform = torch.full((count,), 1 / count, dtype=torch.float64)
        size = self.losses.square().mean(dim=1).sqrt()
        if not self.is_complete or float(size.sum()) == 0:
            return uniform
        return (1 - UNIFORM_SHARE) * size / size.sum() + UNIFORM_SHARE * uniform

    def timesteps_at(self, position: Tensor) -> Tensor:
        """Timesteps [B] for uniform samples [B] from [0, 1), by the inverse of the distribution function."""
        ends = self.probabilities().cumsum(dim=0)
        found = torch.searchsorted(ends, position.double().cpu(), right=True)
        return found.clamp(max=len(ends) - 1).to(position.device)

    def weights(self, timesteps: Tensor) -> Tensor:
        """1 / (T p_t), the factor of the losses of timesteps [B]."""
        factors = 1 / (len(self.counts) * self.probabilities())
        return factors[timesteps.cpu()].float().to(timesteps.device)

    def update(self, timesteps: Tensor, losses: Tensor) -> None:
        """Remember losses [N] of timesteps [N]; their order, which depends on the processes, makes no difference."""
        pairs = sorted(zip(timesteps.tolist(), losses.double().tolist(), strict=True))
        for t, loss in pairs:
            if loss == loss and abs(loss) != float("inf"):
                self.losses[t] = torch.cat([self.losses[t, 1:], self.losses.new_tensor([loss])])
                self.counts[t] = min(int(self.counts[t]) + 1, HISTORY)

    def numbers(self) -> dict[str, Any]:
        """What `load` restores, as JSON."""
        return {"losses": self.losses.tolist(), "counts": self.counts.tolist()}

    def load(self, numbers: dict[str, Any]) -> None:
        """Restore what `numbers` returned."""
        self.losses = torch.tensor(numbers["losses"], dtype=torch.float64)
        self.counts = torch.tensor(numbers["counts"], dtype=torch.long)
