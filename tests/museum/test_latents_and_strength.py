"""diffusers' inpainting ignores the image inside the mask when `latents` are given with a strength below 1.

The latents given are then taken for the noisy latents of the first step that is run, without the image. So the same
latents with two different images give the same result under the mask, whatever the strength.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline

from ldm.pipeline.pipeline import Pipeline
from tests.support.museum import shown_wrong
from tests.support.tiny_images import NOISE, PROMPTS, box_mask, clean_latents, photo, pixels, stock
from tests.support.tiny_models import make_sd1

COMMON: dict[str, Any] = {"num_inference_steps": 4, "strength": 0.5}


def test_the_image_counts_beside_latents(tmp_path: Path) -> None:
    pipeline, images = Pipeline(make_sd1(tmp_path)), [photo(seed=1), photo(seed=2)]
    mask = box_mask((16, 16), (0, 0, 15, 15))

    def ours(image: Any) -> Any:
        given = {"image": image, "mask": mask, "latents": NOISE[:1], "scheduler": "ddim"}
        return pixels(pipeline.generate(PROMPTS[0], **given, **COMMON).images[0])

    assert np.abs(ours(images[0]) - ours(images[1])).max() > 1

    def theirs(image: Any) -> Any:
        made = stock(StableDiffusionInpaintPipeline, pipeline, "ddim")(
            PROMPTS[0],
            image=clean_latents(pipeline, [image]),
            mask_image=mask,
            masked_image_latents=torch.zeros(1, 4, 8, 8),
            latents=NOISE[:1],
            height=16,
            width=16,
            **COMMON,
        )
        return pixels(made.images[0])

    shown_wrong(np.array_equal(theirs(images[0]), theirs(images[1])))
