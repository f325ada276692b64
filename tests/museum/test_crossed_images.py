"""diffusers crosses images and prompts when several prompts are given with several images each.

With B prompts and `num_images_per_prompt=n`, the prompts are repeated as p1, p1, p2, p2 and the input images as i1, i2,
i1, i2. So the second image of the first prompt is made from the second input image, and no error is raised. This holds
for image-to-image, inpainting and InstructPix2Pix, which are run here, and by their code for depth-to-image, the x4
upscaler and the T2I-Adapter. ControlNet repeats both alike.
"""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from PIL import Image

from ldm.pipeline.pipeline import Pipeline
from tests.support.museum import shown_wrong
from tests.support.tiny_images import PROMPTS, box_mask, clean_latents, photo, pixels, stock
from tests.support.tiny_models import make_sd1
from tests.support.tiny_task_models import make_task_model

pytestmark = pytest.mark.filterwarnings("ignore:You have passed 4 text prompts:FutureWarning")

TWO = [photo(seed=1), photo(seed=2)]
MASK = box_mask((16, 16), (0, 0, 15, 15))
NUM_STEPS = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    folder = tmp_path_factory.mktemp("models")
    plain, edit = make_sd1(folder / "plain"), make_task_model(folder / "edit", "edit")
    return {"img2img": Pipeline(plain), "inpaint": Pipeline(plain), "edit": Pipeline(edit)}


STOCK = {
    "img2img": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
    "edit": StableDiffusionInstructPix2PixPipeline,
}


def theirs(task: str, pipeline: Pipeline, prompts: list[str], given: torch.Tensor, number: int) -> Any:
    """Images of prompts, each `number` times, from latents of images; all from the same noise."""
    more: dict[str, Any] = {}
    if task == "inpaint":
        more = {"mask_image": [MASK] * len(prompts), "height": 16, "width": 16}
        more["masked_image_latents"] = torch.zeros(len(prompts), 4, 8, 8)
    return stock(STOCK[task], pipeline, "ddim")(
        prompts,
        image=given,
        num_images_per_prompt=number,
        num_inference_steps=NUM_STEPS,
        negative_prompt=[""] * len(prompts),
        generator=[torch.Generator().manual_seed(0) for _ in range(number * len(prompts))],
        **({"strength": 0.5} if task != "edit" else {}),
        **more,
    ).images


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.abs(pixels(one) - pixels(other)).max() <= 1)


@pytest.mark.parametrize("task", STOCK)
def test_each_prompt_keeps_its_own_image(models: dict[str, Pipeline], task: str) -> None:
    pipeline = models[task]
    options: dict[str, Any] = {"num_inference_steps": NUM_STEPS, "scheduler": "ddim"}
    if task == "inpaint":
        options["mask"] = MASK
    together = pipeline.generate(PROMPTS, image=TWO, num_images=2, seed=3, **options).images
    alone = [
        pipeline.generate(prompt, image=image, seed=3 + number, **options).images[0]
        for prompt, image in zip(PROMPTS, TWO, strict=True)
        for number in range(2)
    ]
    assert all(map(same, together, alone))

    given = clean_latents(pipeline, TWO)
    second = theirs(task, pipeline, PROMPTS, given, 2)[1]  # of the first prompt
    from_its_own, from_the_other = (
        theirs(task, pipeline, PROMPTS[:1], given[[row]], 1)[0] for row in range(2)
    )
    shown_wrong(same(second, from_the_other) and not same(second, from_its_own))
