"""The likelihood of images under a latent diffusion model, in bits per dimension: an upper bound in three parts.

    -log p(x) <= E_q[-log p(x | z)] + E_q[log q(z | x)] - E_q[log p(z)]

    reconstruction   of 8-bit pixels by the decoder, with the Gaussian noise that fits these images best
    encoder          minus the entropy of the encoder's posterior
    latents          the variational bound of the denoiser, see `ldm.diffusion.variational_bound`

All are divided by 3 H W log 2. Latents are measured without the scaling factor, so it changes none of the parts. The
prompt is given: it is the likelihood of an image given its caption.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import torch
from torch import Tensor

from ldm import noise
from ldm.diffusion.path import ProbabilityPath
from ldm.diffusion.variational_bound import (
    BoundLevels,
    bound_levels,
    diffusion_term,
    least_noise_term,
    prior_term,
    squared_distance,
)
from ldm.models.parts import ModelParts
from ldm.models.vae import KLAutoencoder
from ldm.types import Conditioning

HALF_STEP = 1 / 255
"""Half the distance between two 8-bit values, of pixel values in [-1, 1]."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class ImageBound:
    """The bound on the likelihood of one image, in bits per dimension.

    Attributes:
        terms: the levels that were drawn, as parts of the path from 0 (least noise) to 1, and what each adds.
    """

    reconstruction: float
    encoder: float
    latents: float
    terms: tuple[tuple[float, float], ...] = ()

    @property
    def total(self) -> float:
        """The bound itself."""
        return self.reconstruction + self.encoder + self.latents


PARTS = ("total", "reconstruction", "encoder", "latents")


def summary(bounds: Sequence[ImageBound]) -> dict[str, dict[str, float | None]]:
    """The mean of each part over the images, with the ends of its 95 % interval; None for a single image."""
    return {name: _mean_of([getattr(bound, name) for bound in bounds]) for name in PARTS}


def _mean_of(values: Sequence[float]) -> dict[str, float | None]:
    mean = fmean(values)
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    error = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - error, "high": mean + error}


def image_bounds(
    parts: ModelParts,
    path: ProbabilityPath,
    images: Iterable[tuple[str, str, Tensor]],
    *,
    num_levels: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_image: Callable[[], None] = lambda: None,
) -> tuple[list[ImageBound], float]:
    """The bound for each image, and the deviation of the decoder's noise that fits them best, in [-1, 1].

    Each image has draws of its own, so its bound depends on no other, except by that deviation.

    Args:
        images: id, caption and pixel values [3, H, W] in [-1, 1]; they are read twice.
        num_levels: how many noise levels are drawn for each image.
    """
    images, levels, autoencoder = list(images), bound_levels(path), parts.autoencoder
    reconstructed = [_reconstruct(autoencoder, name, pixels, seed, device) for name, _, pixels in images]
    error = fmean(
        float((mean - p.to(mean)).square().mean())
        for (*_, mean), (*_, p) in zip(reconstructed, images, strict=True)
    )
    deviation = math.sqrt(error + HALF_STEP**2 / 3)
    bounds = []
    for (name, caption, pixels), (moments, latents, mean) in zip(images, reconstructed, strict=True):
        unit = pixels.numel() * math.log(2)
        conditioning = parts.encode([caption], size=(pixels.shape[1], pixels.shape[2]))
        drawn = _draws(levels, name, num_levels, seed)
        in_latents, terms = latent_bound(parts, path, levels, drawn, latents, conditioning, (seed, name))
        bounds.append(
            ImageBound(
                float(reconstruction_term(pixels.to(mean), mean, deviation)) / unit,
                float(encoder_term(moments)) / unit,
                (in_latents - latents.numel() * math.log(autoencoder.scaling_factor)) / unit,
                tuple(zip(levels.places(drawn), (term / unit for term in terms), strict=True)),
            )
        )
        on_image()
    return bounds, deviation


@torch.no_grad()
def _reconstruct(
    autoencoder: KLAutoencoder, name: str, pixels: Tensor, seed: int, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments [1, 2C, h, w], a sample of the latents [1, C, h, w] and its decoded image [3, H, W]."""
    moments = autoencoder.encode(pixels[None].to(device))
    shape = (1, moments.shape[1] // 2, *moments.shape[2:])
    posterior = torch.randn(shape, generator=noise.generator_for(seed, name, "posterior")).to(device)
    latents = autoencoder.sample_posterior(moments, posterior)
    return moments, latents, autoencoder.decode(latents)[0]


def _draws(levels: BoundLevels, name: str, num_levels: int, seed: int) -> Tensor:
    """Timesteps for an image: one of each of `num_levels` equally likely parts of the path."""
    shift = noise.uniform(seed, name, "levels")
    return levels.draw((torch.arange(num_levels, dtype=torch.float64) + shift) / num_levels)


def latent_bound(
    parts: ModelParts,
    path: ProbabilityPath,
    levels: BoundLevels,
    drawn: Tensor,
    latents: Tensor,
    conditioning: Conditioning,
    key: tuple[int | str, ...],
) -> tuple[float, list[float]]:
    """An unbiased estimate of the variational bound of latents [1, C, h, w] in nats, and each draw's part of it."""

    def distance(timestep: Tensor, number: int) -> Tensor:
        generator = noise.generator_for(*key, "noise", number)
        random = torch.randn(latents.shape, generator=generator).to(latents)
        return squared_distance(parts.denoiser, path, timestep, latents, random, conditioning)

    terms = [
        float(diffusion_term(levels, path, timestep, distance(timestep, number))) / len(drawn)
        for number, timestep in enumerate(drawn.view(-1, 1))
    ]
    least = least_noise_term(levels, distance(levels.timesteps[:1], len(drawn)), latents.numel())
    return float(prior_term(path, levels, latents)) + float(least) + sum(terms), terms


def encoder_term(moments: Tensor) -> Tensor:
    """Minus the entropy of the posterior N(mean, variance), in nats: moments [1, 2C, h, w] -> a scalar."""
    log_variance = moments.chunk(2, dim=1)[1].clamp(-30.0, 20.0).double()
    return -0.5 * (log_variance + math.log(2 * math.pi * math.e)).sum()


def reconstruction_term(pixels: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """-log of the probability of 8-bit pixels in [-1, 1] under N(mean, deviation^2), in nats; all of the same shape.

    A value stands for the interval of width 2 / 255 around it, the first and the last for all beyond.
    """
    pixels, mean = pixels.double(), mean.double()
    low, high = (pixels - HALF_STEP - mean) / deviation, (pixels + HALF_STEP - mean) / deviation
    low = torch.where(pixels < -1 + HALF_STEP, -math.inf, low)
    high = torch.where(pixels > 1 - HALF_STEP, math.inf, high)
    mirrored = low > 0  # so that the tail that is subtracted is not rounded away
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    total: Tensor = -(upper + torch.log1p(-torch.exp(lower - upper))).sum()
    return total


def describe(found: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """A summary as lines of text."""
    width = max(map(len, found))
    return [f"{name + ':':{width + 1}} {_shown(part)} bits per dimension" for name, part in found.items()]


def _shown(part: Mapping[str, float | None]) -> str:
    mean, low, high = (part[key] for key in ("mean", "low", "high"))
    return f"{mean:.4f}" if low is None else f"{mean:.4f} [{low:.4f}, {high:.4f}]"
