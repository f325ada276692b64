"""diffusers' inpainting changes the image outside the mask.

The whole image goes through the autoencoder, which changes every pixel a little, and the original's pixels are not put
back unless `padding_mask_crop` is given.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline

from ldm.pipeline.pipeline import Pipeline
from tests.support.museum import shown_wrong
from tests.support.tiny_images import NOISE, PROMPTS, box_mask, photo, pixels, stock
from tests.support.tiny_models import make_sd1


def test_not_a_pixel_outside_the_mask_changes(tmp_path: Path) -> None:
    pipeline, image, mask = Pipeline(make_sd1(tmp_path)), photo(), box_mask((16, 16), (4, 6, 11, 15))
    outside = np.asarray(mask) == 0
    ours = pipeline.generate(PROMPTS[0], image=image, mask=mask, num_inference_steps=2, latents=NOISE[:1])
    changed = pixels(ours.images[0]) != pixels(image)
    assert not changed[outside].any() and changed[~outside].any()

    theirs = stock(StableDiffusionInpaintPipeline, pipeline, "ddim")(
        PROMPTS[0],
        image=image,
        mask_image=mask,
        height=16,
        width=16,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    shown_wrong(bool((pixels(theirs) != pixels(image))[outside].any()))
