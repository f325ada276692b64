"""diffusers takes a tensor of four channels for latents, even if it is an RGBA image.

An image of 16 x 16 pixels with an alpha channel is read as latents of 16 x 16, and the result is an image of another
size that has nothing to do with the one given. Image-to-image and InstructPix2Pix are run here; inpainting and the
latent upscaler do the same.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInstructPix2PixPipeline

from ldm.errors import UserError
from ldm.pipeline.pipeline import Pipeline
from tests.support.museum import shown_wrong
from tests.support.tiny_images import PROMPTS, photo, pixels, stock
from tests.support.tiny_models import make_sd1
from tests.support.tiny_task_models import make_task_model


@pytest.mark.parametrize("task", ["image-to-image", "edit"])
def test_an_image_with_alpha_is_an_image(tmp_path: Path, task: str) -> None:
    is_edit = task == "edit"
    pipeline = Pipeline(make_task_model(tmp_path, "edit") if is_edit else make_sd1(tmp_path))
    rgba = photo().convert("RGBA")
    made, plain = (
        pipeline.generate(PROMPTS[0], image=image, num_inference_steps=2).images[0]
        for image in (rgba, photo())
    )
    assert made.size == (16, 16) and np.array_equal(pixels(made), pixels(plain))
    tensor = torch.from_numpy(pixels(rgba)).permute(2, 0, 1)[None].float() / 255
    with pytest.raises(UserError, match="image is a Tensor: give a file name or a PIL image"):
        pipeline.generate(PROMPTS[0], image=tensor)  # type: ignore[arg-type]

    cls = StableDiffusionInstructPix2PixPipeline if is_edit else StableDiffusionImg2ImgPipeline
    theirs = stock(cls, pipeline, "ddim")(PROMPTS[0], image=tensor, num_inference_steps=2).images[0]
    shown_wrong(theirs.size == (32, 32))
