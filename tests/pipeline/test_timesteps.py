"""Images sampled at given timesteps: equal to those of a stock pipeline, recorded, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ldm.diffusion.flow import FlowPath, FlowSettings
from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings
from ldm.noise import image_generators
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_images import stock_scheduler
from tests.support.tiny_models import make_sd2

TIMESTEPS = [990, 700, 333, 120]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd2(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "euler", "heun", "ddpm", "lcm"])
def test_images_equal_those_of_the_stock_pipeline(pipeline: Pipeline, scheduler: str) -> None:
    parts = pipeline.parts
    stock = StableDiffusionPipeline(
        vae=parts.autoencoder.vae,
        text_encoder=parts.text_encoder.model,
        tokenizer=parts.text_encoder.tokenizer,
        unet=parts.denoiser.unet,
        scheduler=stock_scheduler(scheduler, parts.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "a red apple",
        timesteps=TIMESTEPS,
        guidance_scale=3.0,
        height=16,
        width=16,
        generator=image_generators([5]),
    ).images[0]
    made = pipeline.generate(
        "a red apple", timesteps=TIMESTEPS, guidance_scale=3.0, seed=5, scheduler=scheduler
    )
    difference = np.abs(np.asarray(made.images[0], dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.max() <= 1
    assert made.settings[0]["timesteps"] == "990,700,333,120" and made.settings[0]["num_inference_steps"] == 4


def test_without_them_records_are_as_before(pipeline: Pipeline) -> None:
    assert "timesteps" not in pipeline.generate("a red apple").settings[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheduler": "ddim"}, "cannot sample at given timesteps"),
        ({"scheduler": "dpmpp_2m", "karras": True}, "leave one of the two out"),
        ({"scheduler": "dpmpp_2m", "timesteps": "2000,10"}, "the largest of this model is 999"),
        ({"timesteps": "10,20"}, "falling numbers"),
        ({"timesteps": "10,x"}, "whole numbers"),
        ({"num_inference_steps": 7}, "timesteps has 4 numbers, and num_inference_steps is 7"),
    ],
)
def test_what_would_not_be_sampled_is_refused(pipeline: Pipeline, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        pipeline.generate("a red apple", **{"timesteps": TIMESTEPS, **given})
    assert said in str(caught.value)


def test_a_number_of_steps_takes_the_place_of_timesteps_below() -> None:
    below = GenerationSettings(timesteps="990,500", guidance_scale=2.0)
    assert below.num_inference_steps == 2
    assert GenerationSettings(guidance_scale=3.0).over(below).timesteps == "990,500"
    above = GenerationSettings(num_inference_steps=9).over(below)
    assert (above.timesteps, above.num_inference_steps, above.guidance_scale) == ("", 9, 2.0)


def test_flow_schedulers_that_would_shift_the_noise_but_not_the_timesteps_are_refused(tmp_path: Path) -> None:
    """diffusers calls the network at the timesteps given, with latents of other noise levels."""
    parts = make_sd2(tmp_path)
    parts.scheduler_config = FlowPath(FlowSettings(shift=3.0)).scheduler_config()
    for scheduler in ("euler", "dpmpp_2m"):
        with pytest.raises(UserError, match="cannot sample at given timesteps"):
            Pipeline(parts).generate("a", timesteps=[900, 500], scheduler=scheduler)
    parts.scheduler_config = FlowPath().scheduler_config()
    latents = Pipeline(parts).generate("a", timesteps=[900, 500], scheduler="euler").latents
    assert torch.isfinite(latents[0]).all()
