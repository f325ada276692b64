"""The autoencoder: a diffusers `AutoencoderKL` between pixels and scaled, shifted latents."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

TILE_LATENTS = 64
"""The side of a tile in decoding and encoding: 512 pixels with 8 x 8 pixels per latent, as most models are trained."""


def downscale(block_out_channels: Sequence[int]) -> int:
    """How many times smaller the last level of a network is along an axis: each level but the last halves H and W."""
    return int(2 ** (len(block_out_channels) - 1))


class KLAutoencoder(nn.Module):
    """`encode(pixel_values [B,3,H,W]) -> moments [B,2C,h,w]`, `decode(latents [B,C,h,w]) -> pixel_values`.

    Pixels are in [-1, 1]. Latents are scaled for the denoiser: `(z - shift_factor) * scaling_factor`, or where the
    configuration has a mean and a deviation for each channel, `(z - latents_mean) * scaling_factor / latents_std`.

    Attributes:
        vae: the diffusers model, which is trained, saved and loaded.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    @property
    def num_channels(self) -> int:
        """C, the channels of the latents."""
        return int(self.vae.config.latent_channels)

    @property
    def pixels_per_latent(self) -> int:
        """H / h: pixels per latent along an axis."""
        return downscale(self.vae.config.block_out_channels)

    @property
    def scaling_factor(self) -> float:
        """The factor that gives latents about unit variance."""
        return float(self.vae.config.scaling_factor)

    @property
    def shift_factor(self) -> float:
        """Subtracted before scaling; 0 for a model without one."""
        return float(self.vae.config.get("shift_factor") or 0.0)

    def channel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """`latents_mean` and `latents_std` [1, C, 1, 1] of some models of Stable Diffusion XL; None for others.

        Args:
            like: latents, of whose number format and device the result is.
        """
        given = [self.vae.config.get(name) for name in ("latents_mean", "latents_std")]
        if None in given:
            return None
        mean, std = (like.new_tensor(each).view(1, -1, 1, 1) for each in given)
        return mean, std

    def encode(self, pixel_values: Tensor, *, in_tiles: bool = False) -> Tensor:
        """The posterior's mean and log-variance, unscaled: [B, 3, H, W] -> [B, 2C, h, w] float32.

        Args:
            in_tiles: encode in tiles as `decode` does.
        """
        if in_tiles:
            self._set_tiles()
            self.vae.enable_tiling()
        try:
            posterior = self.vae.encode(pixel_values.to(self.vae.dtype), return_dict=False)[0]
        finally:
            if in_tiles:
                self.vae.disable_tiling()
        moments: Tensor = posterior.parameters
        return moments.float()

    def _set_tiles(self) -> None:
        self.vae.tile_latent_min_size = TILE_LATENTS
        self.vae.tile_sample_min_size = TILE_LATENTS * self.pixels_per_latent

    def decode(self, latents: Tensor, *, in_tiles: bool = False) -> Tensor:
        """Scaled latents [B, C, h, w] -> pixel_values [B, 3, H, W] in about [-1, 1], float32.

        Args:
            in_tiles: decode in tiles of `TILE_LATENTS` a side, which overlap by a quarter and are blended.
        """
        unscaled = self.unscale(latents)
        decode = self.vae.decode
        if in_tiles:
            self._set_tiles()
            decode = self.vae.tiled_decode
        pixel_values: Tensor = decode(unscaled.to(self.vae.dtype), return_dict=False)[0]
        return pixel_values.float()

    def encoding_bytes(self, height: int, width: int) -> int:
        """Roughly the peak memory for encoding one image into latents of h x w.

        The peak is in the first level: four maps of the size of the image.
        """
        pixels = height * width * self.pixels_per_latent**2
        return int(4 * self.vae.config.block_out_channels[0] * pixels * self.vae.dtype.itemsize)

    def decoding_bytes(self, height: int, width: int) -> int:
        """Roughly the peak memory for decoding one image from latents of h x w.

        The peak is in the last level: four maps of the size of the image, with the channels of the level before it.
        """
        channels = self.vae.config.block_out_channels[:2][-1]
        pixels = height * width * self.pixels_per_latent**2
        return int(4 * channels * pixels * self.vae.dtype.itemsize)

    def has_tiles(self, height: int, width: int) -> bool:
        """Whether latents of h x w are larger than a tile."""
        return max(height, width) > TILE_LATENTS

    def sample_posterior(self, moments: Tensor, noise: Tensor) -> Tensor:
        """One draw from the posterior, scaled: mean + exp(log_variance / 2) noise.

        Args:
            moments: from `encode`, [B, 2C, h, w].
            noise: standard normal [B, C, h, w].
        """
        mean, log_variance = moments.chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return self.scale(mean + deviation * noise)

    def scale(self, unscaled: Tensor) -> Tensor:
        """The encoder's latents -> the denoiser's; `decode` undoes it."""
        if statistics := self.channel_statistics(unscaled):
            mean, std = statistics
            return (unscaled - mean) * self.scaling_factor / std
        return (unscaled - self.shift_factor) * self.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """The denoiser's latents -> the encoder's."""
        if statistics := self.channel_statistics(latents):
            mean, std = statistics
            return latents * std / self.scaling_factor + mean
        return latents / self.scaling_factor + self.shift_factor
