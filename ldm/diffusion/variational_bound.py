"""The variational bound on -log p(latents), Eq. 5 of Ho et al. 2020, on any path.

A path is divided into T levels, from the least noise to the most. With x the latents and x_t(x) the network's x_0:

    prior      KL(q(z_{T-1} | x) | p(z_{T-1}))
    t > 0      (SNR_{t-1} - SNR_t) / 2 |x - x_t|^2                             Eq. 14 of Kingma et al. 2021
    t = 0      -log N(x; x_0, 1 / SNR_0)

These only depend on the signal-to-noise ratio. A network with a learned variance uses that of its reverse steps.
Axis letters as in `ldm.types`. All values are in nats, summed over an image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.edm import EDMPath
from ldm.diffusion.path import DDPMPath, ProbabilityPath
from ldm.types import Conditioning, Denoiser

NUM_LEVELS = 1000
"""The levels of a continuous path."""


@dataclass(frozen=True)
class BoundLevels:
    """The levels of a path, and how often each is drawn for an estimate of the sum over them.

    Attributes:
        timesteps: the network's time inputs, [T].
        snr: their signal-to-noise ratios, [T] in float64.
        deviation: the usual standard deviation of latents.
    """

    timesteps: Tensor
    snr: Tensor
    deviation: float = 1.0

    def probabilities(self) -> Tensor:
        """Of drawing each of the levels 1 to T - 1, [T]; 0 for level 0, which is always computed.

        They are proportional to log(1 + s^2 SNR_{t-1}) - log(1 + s^2 SNR_t), the terms of Gaussian data of deviation s
        with the best network. For such data every draw gives the same estimate.
        """
        steps = -torch.log1p(self.deviation**2 * self.snr).diff().clamp(max=-1e-12)
        return torch.cat([torch.zeros(1, dtype=torch.float64), steps / steps.sum()])

    def draw(self, position: Tensor) -> Tensor:
        """Levels [N] for uniform numbers [N] in [0, 1)."""
        found = torch.searchsorted(self.probabilities().cumsum(dim=0), position.double(), right=True)
        return found.clamp(1, len(self.snr) - 1)


def bound_levels(path: ProbabilityPath) -> BoundLevels:
    """The rows of DDPM's table, or levels that are spaced as a continuous path draws them in training."""
    count = path.settings.num_train_timesteps if isinstance(path, DDPMPath) else NUM_LEVELS
    timesteps = path.timesteps_at((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    deviation = path.sigma_data if isinstance(path, EDMPath) else 1.0
    return BoundLevels(timesteps, path.snr(timesteps).double(), deviation)


@torch.no_grad()
def bound_term(
    denoiser: Denoiser,
    path: ProbabilityPath,
    levels: BoundLevels,
    index: Tensor,
    latents: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """The term of level `index` [B] for each image of latents [B, C, h, w]: [B]."""
    timesteps = levels.timesteps[index.cpu()].to(latents.device)
    timesteps = timesteps.float() if timesteps.is_floating_point() else timesteps
    noisy_latents = path.add_noise(latents, noise, timesteps)
    output = denoiser(path.scale_model_input(noisy_latents, timesteps), timesteps, conditioning)
    if path.reverse_steps is not None:
        output, v = output.chunk(2, dim=1)
        predicted = path.to_x_0(output, noisy_latents, timesteps)
        bits = path.reverse_steps.bound(latents, noisy_latents, predicted, v, timesteps)
        return bits.sum(dim=(1, 2, 3)).double() * math.log(2)
    distance = (latents - path.to_x_0(output, noisy_latents, timesteps)).double().square().sum(dim=(1, 2, 3))
    return _of_distance(
        levels.snr.to(distance.device), index.to(distance.device), distance, latents[0].numel()
    )


def _of_distance(snr: Tensor, index: Tensor, distance: Tensor, num_values: int) -> Tensor:
    """The terms for |x - x_t|^2 [B]."""
    own = snr[index]
    step = snr[(index - 1).clamp(min=0)] - own
    density = num_values / 2 * torch.log(2 * math.pi / own) + own / 2 * distance
    return torch.where(index == 0, density, step / 2 * distance)


def prior_term(path: ProbabilityPath, levels: BoundLevels, latents: Tensor) -> Tensor:
    """The term of the prior [B], a normal distribution with the variance that data of the usual variance has there."""
    at = levels.timesteps[-1:].to(latents.device)
    alpha, sigma = path.alpha(at).double(), path.sigma(at).double()
    whole = alpha**2 * levels.deviation**2 + sigma**2
    ratio = sigma**2 / whole
    divergence = 0.5 * (alpha**2 * latents.double() ** 2 / whole + ratio - 1 - ratio.log())
    return divergence.sum(dim=(1, 2, 3))
