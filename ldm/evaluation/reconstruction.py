"""How well an autoencoder gives an image back: PSNR and SSIM."""

import torch
from torch import Tensor
from torch.nn import functional

WINDOW_PX = 11
"""The side of SSIM's window, and so of the smallest image that it can be measured on."""


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair, [B, 3, H, W] in [-1, 1] -> [B]: 10 log10(2^2 / MSE)."""
    error = (first - second).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    return 10 * torch.log10(4.0 / error)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair, [B, 3, H, W] in [-1, 1] -> [B]; H and W are at least `WINDOW_PX`.

    Eq. 13 of Wang et al. 2004 with its Gaussian window of 11 px, sigma 1.5, mean over pixels and channels.
    """
    window = _gaussian_window(first.shape[1])

    def local_mean(image: Tensor) -> Tensor:
        return functional.conv2d(image, window, groups=image.shape[1])

    mean_a, mean_b = local_mean(first), local_mean(second)
    var_a = local_mean(first * first) - mean_a**2
    var_b = local_mean(second * second) - mean_b**2
    covariance = local_mean(first * second) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    quality = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return quality.mean(dim=(1, 2, 3))


def _gaussian_window(channels: int) -> Tensor:
    position = torch.arange(WINDOW_PX, dtype=torch.float32) - WINDOW_PX // 2
    line = torch.exp(-(position**2) / (2 * 1.5**2))
    line = line / line.sum()
    return torch.outer(line, line).expand(channels, 1, WINDOW_PX, WINDOW_PX).contiguous()
