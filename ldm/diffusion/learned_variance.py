"""Learned variances of DDPM's reverse steps (Nichol & Dhariwal 2021, "Improved DDPM").

The network has twice the output channels. The second half, v, places the variance of the step from t to t - 1 between
its two extremes: beta~_t, right for data that is a single point, and beta_t, right for data of unit variance.

    log Sigma = f log beta_t + (1 - f) log beta~_t,    f = (v + 1) / 2        Eq. 15
    L_hybrid = L_simple + 0.001 L_vlb                                          Eq. 16
"""

import math

import torch
from torch import Tensor

VLB_WEIGHT = 0.001
"""lambda of Eq. 16: small, so that the learned variance does not disturb the mean."""


class ReverseSteps:
    """The Gaussians q(x_{t-1} | x_t, x_0) of a noise schedule, and bounds on what a network makes of them."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """Computes all tables in float64.

        Args:
            alphas_cumprod: alpha_t^2 of each timestep, [T].
        """
        level = alphas_cumprod.double().cpu()
        before = torch.cat([torch.ones(1, dtype=torch.float64), level[:-1]])
        beta = 1 - level / before
        posterior = beta * (1 - before) / (1 - level)  # beta~_t of Eq. 7 of Ho et al. 2020
        self.num_timesteps = len(level)
        self.largest = beta.log()
        self.smallest = torch.cat([posterior[1:2], posterior[1:]]).log()  # beta~_0 is 0, so that of t = 1
        self.of_x_0 = before.sqrt() * beta / (1 - level)
        self.of_x_t = (level / before).sqrt() * (1 - before) / (1 - level)

    def log_variance(self, v: Tensor, timesteps: Tensor) -> Tensor:
        """The logarithm of the predicted variance, Eq. 15: v [B, C, h, w], usually in [-1, 1] -> [B, C, h, w]."""
        share = (v + 1) / 2
        largest, smallest = _at(self.largest, timesteps, v), _at(self.smallest, timesteps, v)
        return share * largest + (1 - share) * smallest

    def mean(self, x_0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The mean of x_{t-1} given x_t and x_0, Eq. 7 of Ho et al. 2020; x_0 itself at t = 0."""
        return _at(self.of_x_0, timesteps, x_t) * x_0 + _at(self.of_x_t, timesteps, x_t) * x_t

    def bound(self, x_0: Tensor, x_t: Tensor, predicted: Tensor, v: Tensor, timesteps: Tensor) -> Tensor:
        """The term of timestep t in the variational bound, Eq. 4 to 7: [B, C, h, w], in bits.

        At t > 0 it is the KL divergence of the true reverse step from the predicted one. At t = 0 it is the negative
        log density of x_0. (For 8-bit pixels, Improved DDPM uses the probability of a pixel's value there. Latents
        are continuous.)

        Args:
            predicted: the x_0 that the network implies; gradients flow through it unless it is detached.
        """
        log_variance = self.log_variance(v, timesteps)
        distance = self.mean(x_0, x_t, timesteps) - self.mean(predicted, x_t, timesteps)
        squared = distance.square() * torch.exp(-log_variance)
        ratio = _at(self.smallest, timesteps, v) - log_variance
        divergence = 0.5 * (ratio.exp() - 1 - ratio + squared)
        density = 0.5 * (math.log(2 * math.pi) + log_variance + squared)
        is_last = (timesteps == 0).view(-1, 1, 1, 1)
        return torch.where(is_last, density, divergence) / math.log(2)


def _at(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """The values of a table [T] at timesteps [B], as [B, 1, 1, 1] in the number format of `like`."""
    return table.to(timesteps.device)[timesteps].to(like.dtype).view(-1, 1, 1, 1)
