"""diffusers' SDXL pipelines cut a step of two calls in two where one hands over to the other.

Heun's method calls the network twice a step. `StableDiffusionXLPipeline` with `denoising_end` stops after the first
call of a step, and `StableDiffusionXLImg2ImgPipeline` with `denoising_start` takes the whole step again, from latents
that have less noise by then. A model that hands over to itself should give the image that it makes alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from ldm.noise import image_generators
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.refiner import Refiner
from tests.support.museum import shown_wrong
from tests.support.tiny_images import SEED, largest, stock_scheduler
from tests.support.tiny_models import make_sdxl

COMMON: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0}


def test_theirs_takes_a_step_twice_and_ours_does_not(tmp_path: Path) -> None:
    parts = make_sdxl(tmp_path)

    def theirs(kind: Any) -> Any:
        scheduler = stock_scheduler("heun", parts.scheduler_config)
        made = kind(**parts.components(), scheduler=scheduler, add_watermarker=False)
        made.set_progress_bar_config(disable=True)
        return made

    ours = Pipeline(parts)
    whole = ours.generate("red", seed=SEED, scheduler="heun", **COMMON)
    ours.refiner = Refiner(replace(parts), "")
    shared = ours.generate("red", seed=SEED, scheduler="heun", denoising_end=0.5, **COMMON)
    assert largest(whole.images, shared.images) == 0
    size = {"height": 16, "width": 16, "generator": image_generators([SEED])}
    base, image_to_image = theirs(StableDiffusionXLPipeline), theirs(StableDiffusionXLImg2ImgPipeline)
    latents = base("red", denoising_end=0.5, output_type="latent", **size, **COMMON).images
    refined = image_to_image("red", image=latents, denoising_start=0.5, **COMMON).images
    again = {**size, "generator": image_generators([SEED])}
    assert largest(whole.images, base("red", **again, **COMMON).images) <= 1
    shown_wrong(largest(whole.images, refined) > 1)
