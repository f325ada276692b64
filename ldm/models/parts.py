"""The parts of a model, wherever they come from."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ldm.models.clip import ClipTextEncoder
from ldm.models.loading.folder import Defaults
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder


@dataclass
class ModelParts:
    """A model in its parts.

    Attributes:
        scheduler_config: the noise schedule and prediction type, a diffusers scheduler's configuration.
    """

    denoiser: UNetDenoiser
    autoencoder: KLAutoencoder
    text_encoder: ClipTextEncoder
    scheduler_config: dict[str, Any]
    defaults: Defaults

    def modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The three networks."""
        return self.denoiser, self.autoencoder, self.text_encoder


def default_size(denoiser: UNetDenoiser, autoencoder: KLAutoencoder) -> tuple[int, int]:
    """Height and width in pixels that the denoiser was made for."""
    size = denoiser.unet.config.sample_size or 64
    height, width = (size, size) if isinstance(size, int) else size
    return height * autoencoder.pixels_per_latent, width * autoencoder.pixels_per_latent
