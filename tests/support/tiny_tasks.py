"""Tiny models with random weights for the tasks that have class labels."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ldm.models.fresh import add_class_labels, widen_input
from ldm.models.low_resolution import LowResolutionNoise
from ldm.models.parts import ModelParts
from ldm.models.vae import KLAutoencoder
from tests.support.tiny_models import make_sd2

INPUTS = {"upscale": (7, 1000), "restore": (8, 101)}
"""The channels of the UNet's input, and its class labels."""


def make_vae(num_levels: int) -> KLAutoencoder:
    """With a number of levels, of which each but the last halves the image."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=(8,) * num_levels,
        norm_num_groups=4,
        latent_channels=4,
    )
    return KLAutoencoder(vae).eval().requires_grad_(False)


def make_labelled(folder: Path, task: str, *, scaling_factor: float = 0.3, num_levels: int = 2) -> ModelParts:
    """A tiny SD2 whose weights for the task are random too. Two levels are 2 x 2 pixels per latent, three are 4 x 4."""
    parts = make_sd2(folder)
    if num_levels != 2:
        parts.autoencoder = make_vae(num_levels)
    channels, num_labels = INPUTS[task]
    widen_input(parts.denoiser.unet, channels)
    add_class_labels(parts.denoiser.unet, num_labels)
    torch.manual_seed(1)
    torch.nn.init.normal_(parts.denoiser.unet.conv_in.weight, std=0.1)
    torch.nn.init.normal_(parts.denoiser.unet.class_embedding.weight)
    parts.denoiser.eval().requires_grad_(False)
    parts.autoencoder.vae.register_to_config(scaling_factor=scaling_factor, shift_factor=0.1)
    parts.task = task
    parts.low_resolution = LowResolutionNoise() if task == "upscale" else None
    return parts
