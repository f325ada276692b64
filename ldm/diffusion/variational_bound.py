"""The variational bound on -log p(latents) in continuous time, on any path: Kingma et al. 2021, "Variational Diffusion
Models", Eq. 11 to 18.

    prior          KL(q(z_1 | x) | p(z_1))                                       at the most noise
    diffusion      1/2 integral of |x - x_t(x)|^2 over SNR_t                     in between
    least noise    -log N(x; x_0, 1 / SNR_0)                                     at the least noise

x are the latents, and x_t(x) the network's x_0 for latents with the noise of level t. All depends on the
signal-to-noise ratio alone. A learned variance is not used: in continuous time the best variance is known.
Axis letters as in `ldm.types`. All values are in nats, summed over an image.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm.diffusion.edm import EDMPath
from ldm.diffusion.path import DDPMPath, ProbabilityPath
from ldm.types import Conditioning, Denoiser

NUM_LEVELS = 4000
"""The levels of a continuous path between which timesteps are interpolated."""

ENDS = (0.001, 0.999)
"""The part of a continuous path between whose ends the bound is computed. Outside it, networks are hardly trained."""


@dataclass(frozen=True)
class BoundLevels:
    """The levels of a path from the least noise to the most, with all in between.

    Attributes:
        timesteps: the network's time inputs, [T] in float64.
        snr: their signal-to-noise ratios, [T] in float64.
        deviation: s, the usual standard deviation of latents.
    """

    timesteps: Tensor
    snr: Tensor
    deviation: float = 1.0

    @property
    def length(self) -> float:
        """The whole change of log(1 + s^2 SNR)."""
        ends = torch.log1p(self.deviation**2 * self.snr[[0, -1]])
        return float(ends[0] - ends[1])

    def draw(self, position: Tensor) -> Tensor:
        """Timesteps [N] for uniform numbers [N] in [0, 1): log(1 + s^2 SNR) is then uniform.

        For Gaussian latents of deviation s and the best network, every draw gives the same estimate.
        """
        start = torch.log1p(self.deviation**2 * self.snr[0])
        snr = torch.expm1(start - position.double() * self.length) / self.deviation**2
        found = np.interp(_log_ratio(snr), _log_ratio(self.snr), self.timesteps.numpy())
        return torch.from_numpy(found)

    def places(self, timesteps: Tensor) -> list[float]:
        """Where timesteps [N] lie on the path, from 0 (least noise) to 1."""
        first, last = float(self.timesteps[0]), float(self.timesteps[-1])
        return [(t - first) / (last - first) for t in timesteps.tolist()]


def _log_ratio(snr: Tensor) -> npt.NDArray[np.float64]:
    """log(sigma / alpha), in which DDPM's path is linear between two rows of its table."""
    ratios: npt.NDArray[np.float64] = -0.5 * np.log(np.maximum(snr.numpy(), 1e-12))
    return ratios


def bound_levels(path: ProbabilityPath) -> BoundLevels:
    """The rows of DDPM's table, or levels of a continuous path."""
    if isinstance(path, DDPMPath):
        timesteps = torch.arange(path.settings.num_train_timesteps, dtype=torch.float64)
    else:
        timesteps = path.timesteps_at(torch.linspace(*ENDS, NUM_LEVELS, dtype=torch.float64))
    deviation = path.sigma_data if isinstance(path, EDMPath) else 1.0
    return BoundLevels(timesteps, path.snr(timesteps).double(), deviation)


@torch.no_grad()
def squared_distance(
    denoiser: Denoiser,
    path: ProbabilityPath,
    timesteps: Tensor,
    latents: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """|x - x_t(x)|^2 [B] of latents [B, C, h, w] at timesteps [B]."""
    timesteps = timesteps.float().to(latents.device)
    noisy_latents = path.add_noise(latents, noise, timesteps)
    output = denoiser(path.scale_model_input(noisy_latents, timesteps), timesteps, conditioning)
    predicted = path.to_x_0(output[:, : latents.shape[1]], noisy_latents, timesteps)
    return (latents - predicted).double().square().sum(dim=(1, 2, 3)).cpu()


def least_noise_term(levels: BoundLevels, distance: Tensor, num_values: int) -> Tensor:
    """The term of the least noise [B], for the squared distance [B] there.

    Args:
        num_values: C h w.
    """
    return num_values / 2 * torch.log(2 * math.pi / levels.snr[0]) + levels.snr[0] / 2 * distance


def diffusion_term(levels: BoundLevels, path: ProbabilityPath, timesteps: Tensor, distance: Tensor) -> Tensor:
    """An unbiased estimate of the integral from one drawn timestep, [B], for the squared distance [B] there."""
    square = levels.deviation**2
    return 0.5 * levels.length * (1 / square + path.snr(timesteps).double()) * distance


def prior_term(path: ProbabilityPath, levels: BoundLevels, latents: Tensor) -> Tensor:
    """The term of the prior [B], a normal distribution with the variance that usual latents have at the most noise."""
    alpha, sigma = path.alpha(levels.timesteps[-1:]), path.sigma(levels.timesteps[-1:])
    whole = alpha**2 * levels.deviation**2 + sigma**2
    ratio = sigma**2 / whole
    divergence = 0.5 * (alpha**2 * latents.double().cpu() ** 2 / whole + ratio - 1 - ratio.log())
    return divergence.sum(dim=(1, 2, 3))
