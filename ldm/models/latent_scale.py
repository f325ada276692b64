"""An autoencoder with another scaling factor, and the same latents and images.

Axis letters: C latent channels.
"""

import copy
import math

import torch
from torch import nn

from ldm.models.vae import KLAutoencoder


@torch.no_grad()
def with_scaling_factor(autoencoder: KLAutoencoder, scaling_factor: float) -> KLAutoencoder:
    """A copy whose scaled latents and decoded images are the same, up to rounding, with another scaling factor.

    diffusers' `StableDiffusionUpscalePipeline` puts 0.08333 in place of whatever factor a model has, which makes
    rubbish of any other. The ratio is folded into the two 1 x 1 convolutions at the latents, and so is the shift:
    with r = old / new, the mean m becomes r (m - shift), its log-variance grows by 2 log r, and the decoder divides by
    r and adds the shift.
    """
    folded = KLAutoencoder(copy.deepcopy(autoencoder.vae))
    ratio, shift = autoencoder.scaling_factor / scaling_factor, autoencoder.shift_factor
    vae, channels = folded.vae, autoencoder.num_channels
    if vae.quant_conv is None:
        vae.quant_conv = _identity(2 * channels, vae)
        vae.register_to_config(use_quant_conv=True)
    if vae.post_quant_conv is None:
        vae.post_quant_conv = _identity(channels, vae)
        vae.register_to_config(use_post_quant_conv=True)
    last, first = vae.quant_conv, vae.post_quant_conv
    last.weight[:channels] *= ratio
    last.bias[:channels] = (last.bias[:channels] - shift) * ratio
    last.bias[channels:] += 2 * math.log(ratio)
    first.bias += shift * first.weight.sum(dim=(1, 2, 3))
    first.weight /= ratio
    vae.register_to_config(scaling_factor=scaling_factor, shift_factor=None)
    return folded


def _identity(channels: int, vae: nn.Module) -> nn.Conv2d:
    """A 1 x 1 convolution that changes nothing."""
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(layer.weight)
    layer.load_state_dict({"weight": layer.weight, "bias": torch.zeros(channels)})
    return layer.to(next(vae.parameters())).requires_grad_(False)
