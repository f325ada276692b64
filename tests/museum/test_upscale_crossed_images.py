"""diffusers' upscaler crosses images and prompts when several images of several prompts are made.

The embeddings of B prompts with n images each are ordered p1, p1, p2, p2, the images i1, i2, i1, i2. So the second
image of the first prompt is an enlargement of the second image given. And the noise of the low-resolution images is
drawn once for the call, so the images of one prompt share it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_images import pixels, stock_scheduler
from tests.support.tiny_tasks import make_labelled

BLACK, WHITE = (Image.new("RGB", (8, 8), color) for color in ("black", "white"))
OPTIONS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "noise_level": 0}


class Told:
    """Notes which image each row of the network's input was told of."""

    def __init__(self, unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[float]] = []
        forward = unet.forward

        def seen(sample: Any, *args: Any, **options: Any) -> Any:
            self.rows.append(sample[:, 4:].mean(dim=(1, 2, 3)).round().tolist())
            return forward(sample, *args, **options)

        monkeypatch.setattr(unet, "forward", seen)


def test_theirs_crosses_images_and_ours_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDPMScheduler, StableDiffusionUpscalePipeline

    parts = make_labelled(tmp_path, "upscale", scaling_factor=0.08333)
    parts.autoencoder.vae.register_to_config(shift_factor=None)
    ours, told = Pipeline(parts), Told(parts.denoiser.unet, monkeypatch)
    images = ours.generate(["a", "b"], image=[BLACK, WHITE], num_images=2, **OPTIONS).images
    assert told.rows[0] == [-1, -1, 1, 1]
    alone = ours.generate("a", image=BLACK, seed=1, **OPTIONS).images[0]
    assert np.abs(pixels(images[1]) - pixels(alone)).max() <= 1
    assert parts.low_resolution is not None
    theirs = StableDiffusionUpscalePipeline(
        vae=parts.autoencoder.vae,
        text_encoder=parts.text_encoder.model,
        tokenizer=parts.text_encoder.tokenizer,
        unet=parts.denoiser.unet,
        scheduler=stock_scheduler("ddim", parts.scheduler_config),
        low_res_scheduler=DDPMScheduler.from_config(parts.low_resolution.scheduler_config()),
    )
    theirs.set_progress_bar_config(disable=True)
    told.rows.clear()
    theirs(["a", "b"], image=[BLACK, WHITE], num_images_per_prompt=2, **OPTIONS)
    if told.rows[0] == [-1, -1, 1, 1]:
        pytest.skip("mended in this version of diffusers")
    assert told.rows[0] == [-1, 1, -1, 1]
