"""diffusers' InstructPix2Pix switches all guidance off when one of its two scales is low.

Guidance is on only if `guidance_scale > 1` and `image_guidance_scale >= 1`. So with an image scale of 0.9 the text
scale has no effect, and with a text scale of 1 the image scale has none, without a warning. The formula of Brooks et
al. 2023 (Eq. 3) is linear in both scales.
"""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from torch import Tensor

from ldm.pipeline.pipeline import Pipeline
from tests.support.museum import shown_wrong
from tests.support.tiny_images import NOISE, PROMPTS, photo, pixels, stock
from tests.support.tiny_task_models import make_task_model


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_task_model(tmp_path_factory.mktemp("tokenizer"), "edit"))


def ours(pipeline: Pipeline, text_scale: float, image_scale: float) -> Tensor:
    """Latents after one DDIM step, which is linear in the prediction."""
    return pipeline.generate(
        PROMPTS[0],
        image=photo(),
        latents=NOISE[:1],
        scheduler="ddim",
        num_inference_steps=1,
        guidance_scale=text_scale,
        image_guidance_scale=image_scale,
    ).latents


def test_ours_is_linear_in_both_scales(pipeline: Pipeline) -> None:
    for scales in ([(3.0, 0.5), (3.0, 1.0), (3.0, 1.5)], [(0.5, 1.5), (1.0, 1.5), (1.5, 1.5)]):
        low, middle, high = (ours(pipeline, *each) for each in scales)
        assert (high - middle).abs().max() > 1e-3
        torch.testing.assert_close(high - middle, middle - low, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("one", "other"), [((7.5, 0.9), (3.0, 0.9)), ((1.0, 1.5), (1.0, 4.0))], ids=["text scale", "image scale"]
)
def test_a_scale_has_an_effect_whatever_the_other_is(
    pipeline: Pipeline, one: tuple[float, float], other: tuple[float, float]
) -> None:
    assert (ours(pipeline, *one) - ours(pipeline, *other)).abs().max() > 1e-3

    def theirs(text_scale: float, image_scale: float) -> Any:
        made = stock(StableDiffusionInstructPix2PixPipeline, pipeline, "ddim")(
            PROMPTS[0],
            image=photo(),
            latents=NOISE[:1],
            num_inference_steps=1,
            guidance_scale=text_scale,
            image_guidance_scale=image_scale,
        )
        return pixels(made.images[0])

    shown_wrong(np.array_equal(theirs(*one), theirs(*other)))
