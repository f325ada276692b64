"""diffusers' T2I-Adapter pipeline crosses prompts and control images when both are several and have several images.

The features of images i1, i2 are repeated as i1, i2, i1, i2, and the prompts as p1, p1, p2, p2.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionAdapterPipeline, T2IAdapter

from ldm.models.control.networks import ControlNetwork
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_controls import hints
from tests.support.tiny_images import NOISE, PROMPTS, pixels, stock_scheduler
from tests.support.tiny_models import make_sd1

pytestmark = pytest.mark.filterwarnings("ignore:.*decode_latents method is deprecated:FutureWarning")

STEPS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0}


def test_theirs_are_crossed_and_ours_are_what_each_alone_gives(tmp_path: Path) -> None:
    pipeline = Pipeline(make_sd1(tmp_path))
    torch.manual_seed(0)
    adapter = T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2).eval().requires_grad_(False)
    pipeline.parts.controls["pose"] = ControlNetwork("pose", "pose", "0" * 64, adapter)
    noise = torch.cat([NOISE, NOISE.flip(-1)])
    parts = pipeline.parts
    stock = StableDiffusionAdapterPipeline(
        vae=parts.autoencoder.vae,
        text_encoder=parts.text_encoder.model,
        tokenizer=parts.text_encoder.tokenizer,
        unet=parts.denoiser.unet,
        adapter=adapter,
        scheduler=stock_scheduler("ddim", parts.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    theirs = stock(PROMPTS, image=hints(), num_images_per_prompt=2, latents=noise, **STEPS).images
    ours = pipeline.generate(
        PROMPTS, control={"pose": hints()}, num_images=2, latents=noise, scheduler="ddim", **STEPS
    ).images
    second = stock(PROMPTS[0], image=hints()[0], latents=noise[1:2], **STEPS).images[0]
    assert np.abs(pixels(ours[1]) - pixels(second)).max() <= 1
    assert np.abs(pixels(theirs[1]) - pixels(second)).max() > 1
