"""PSNR and SSIM against their definitions, and the autoencoder's loss terms."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.evaluation.reconstruction import psnr, ssim
from train.autoencoder import kl_to_normal, laplacian_pyramid


def test_psnr_of_a_known_error() -> None:
    image = torch.zeros(2, 3, 16, 16)
    other = torch.stack([image[0] + 0.2, image[1] + 2.0])
    assert psnr(image, other).tolist() == pytest.approx([20.0, 0.0])


def test_ssim_is_one_for_equal_images_and_its_luminance_term_for_flat_ones() -> None:
    image = torch.rand(1, 3, 24, 24) * 2 - 1
    assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-5)
    first, second = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    luminance = (2 * 0.5 * 0.25 + 4e-4) / (0.5**2 + 0.25**2 + 4e-4)
    assert ssim(first, second).item() == pytest.approx(luminance, abs=1e-4)
    assert ssim(image, image.flip(-1)).item() < 0.5


def test_the_kl_term_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    theirs = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).mean(dim=(1, 2, 3))
    assert torch.allclose(kl_to_normal(mean, log_variance), theirs, atol=1e-6)


def test_the_pyramid_sees_edges_and_no_flat_colour() -> None:
    flat, edge = torch.full((1, 3, 16, 16), 0.7), torch.zeros(1, 3, 16, 16)
    edge[..., 5:] = 1
    assert all(band.abs().max() < 1e-6 for band in laplacian_pyramid(flat, 3))
    assert all(band.abs().max() > 0.1 for band in laplacian_pyramid(edge, 3))
    assert [band.shape[-1] for band in laplacian_pyramid(edge, 3)] == [16, 8, 4]
