"""diffusers trains InstructPix2Pix for SDXL on another source image than it is given afterwards.

`examples/instruct_pix2pix/train_instruct_pix2pix_sdxl.py` draws the source's latents from their posterior, while the
pipeline takes the mode, as the script for Stable Diffusion 1 does. Examples are not installed with diffusers, so its
one expression is repeated here; the pipeline's function is the installed one.
"""

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_instruct_pix2pix import (
    retrieve_latents,
)

from ldm.tasks import encoder_for, find_task, input_latents
from tests.support.museum import shown_wrong
from tests.support.tiny_models import make_sd1


def test_the_source_is_encoded_alike_in_training_and_in_use(tmp_path: Path) -> None:
    autoencoder = make_sd1(tmp_path).autoencoder
    pixel_values = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    edit = find_task("edit")
    in_training = input_latents(edit, autoencoder, autoencoder.encode(pixel_values))
    assert torch.equal(in_training, encoder_for(edit, autoencoder)(pixel_values))

    posterior = autoencoder.vae.encode(pixel_values)
    drawn = posterior.latent_dist.sample(torch.Generator().manual_seed(0))
    in_use = retrieve_latents(posterior, sample_mode="argmax")
    assert torch.allclose(in_use, in_training, atol=1e-6)
    shown_wrong(bool((drawn - in_use).std() > 0.1))
