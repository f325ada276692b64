"""diffusers' upscaler puts 0.08333 in place of the autoencoder's scaling factor, so others decode to rubbish.

`StableDiffusionUpscalePipeline.__init__` overwrites `vae.config.scaling_factor`. A model whose latents have another
scale is decoded at up to twelve times the contrast. Ours are saved with the ratio folded into the autoencoder's
weights, and the same pipeline then gives our image.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionUpscalePipeline

from ldm.models.latent_scale import with_scaling_factor
from ldm.models.vae import KLAutoencoder

LATENTS = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
OTHERS = dict.fromkeys(["text_encoder", "tokenizer", "unet", "scheduler"])


def make_vae() -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=0.9, sample_size=8
    ).eval()


@torch.no_grad()
def stock_decode(vae: Any) -> torch.Tensor:
    """As the stock pipeline ends, with the autoencoder that it was given."""
    pipe = StableDiffusionUpscalePipeline(vae=vae, low_res_scheduler=DDPMScheduler(), **OTHERS)
    decoded: torch.Tensor = pipe.vae.decode(LATENTS / pipe.vae.config.scaling_factor).sample
    return decoded


@torch.no_grad()
def test_theirs_decodes_at_another_scale_and_ours_as_trained() -> None:
    expected = KLAutoencoder(make_vae()).decode(LATENTS)
    folded = with_scaling_factor(KLAutoencoder(make_vae()), 0.08333)
    torch.testing.assert_close(stock_decode(folded.vae), expected, atol=1e-4, rtol=1e-4)
    with pytest.warns(FutureWarning, match="scaling_factor"):
        wrong = stock_decode(make_vae())
    assert float((wrong - expected).abs().mean()) > 0.1 * float(expected.std())


@torch.no_grad()
def test_an_autoencoder_without_the_convolutions_gets_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=1.5, shift_factor=0.2,
        use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    folded = with_scaling_factor(KLAutoencoder(vae), 0.08333)
    folded.vae.save_pretrained(tmp_path)
    again, ours = KLAutoencoder(AutoencoderKL.from_pretrained(tmp_path)), KLAutoencoder(vae)
    torch.testing.assert_close(again.decode(LATENTS), ours.decode(LATENTS), atol=1e-4, rtol=1e-4)
    pixel_values = torch.rand(1, 3, 4, 4)
    found, expected = (each.sample_posterior(each.encode(pixel_values), LATENTS) for each in (again, ours))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert np.isclose(again.scaling_factor, 0.08333)
