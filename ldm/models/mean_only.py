"""A denoiser without the variance that it has learned, for programs that expect as many output channels as latent ones.

The first half of the output channels predicts the mean as any other denoiser does, so nothing else changes.
"""

import torch
from torch import nn

from ldm.diffusion.path import DDPMPath
from ldm.diffusion.schedulers import training_path
from ldm.models.parts import ModelParts


def learns_variance(parts: ModelParts) -> bool:
    """Whether the UNet predicts a variance besides the mean."""
    return int(parts.denoiser.unet.config.out_channels) == 2 * parts.autoencoder.num_channels


def strip_variance(parts: ModelParts) -> None:
    """Remove the variance in place: the output channels of the UNet, and what the scheduler's config says of it."""
    if not learns_variance(parts):
        return
    unet, channels = parts.denoiser.unet, parts.autoencoder.num_channels
    both = unet.conv_out
    with torch.device(both.weight.device):
        mean = nn.Conv2d(both.in_channels, channels, both.kernel_size, padding=both.padding).to(both.weight)
    mean.load_state_dict({name: tensor[:channels] for name, tensor in both.state_dict().items()})
    unet.conv_out = mean.requires_grad_(both.weight.requires_grad)
    unet.register_to_config(out_channels=channels)
    settings = training_path(parts.scheduler_config, "the model")
    plain = settings.model_copy(update={"learn_variance": False})
    parts.scheduler_config = DDPMPath(plain).scheduler_config()
