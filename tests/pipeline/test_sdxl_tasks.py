"""Tasks and control networks with a tiny SDXL, against diffusers' own pipelines for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)

from ldm.models.control.networks import ControlNetwork
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.parts import ModelParts
from ldm.pipeline.pipeline import Pipeline
from tests.support.slow_cases import rest_slow
from tests.support.tiny_controls import hints, make_controlnet
from tests.support.tiny_images import NOISE, PROMPTS, FixedNoise, box_mask, largest, photo, stock_scheduler
from tests.support.tiny_models import make_sdxl
from tests.support.tiny_task_models import make_task_model

SCHEDULERS = rest_slow(["euler", "dpmpp_2m", "heun"], "euler")
MODULE = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"


def make_stock(cls: Any, parts: ModelParts, scheduler: str, **more: Any) -> Any:
    made = cls(
        **parts.components(),
        scheduler=stock_scheduler(scheduler, parts.scheduler_config),
        add_watermarker=False,
        **more,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting_equals_diffusers(
    tmp_path: Path, scheduler: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model trained for it, and with one that is not; theirs changes pixels outside the mask."""
    parts = make_sdxl(tmp_path) if channels == 4 else make_task_model(tmp_path, "inpaint", make_sdxl)
    images, mask = [photo(seed=1), photo(seed=2)], box_mask((16, 16), (4, 6, 11, 15))
    common = {"num_inference_steps": 4, "guidance_scale": 4.0, "strength": 1.0}
    ours = Pipeline(parts).generate(
        PROMPTS, image=images, mask=mask, scheduler=scheduler, latents=NOISE, **common
    )
    monkeypatch.setattr(f"{MODULE}_inpaint.randn_tensor", FixedNoise())
    # the mean of the posterior, where theirs draws from it
    monkeypatch.setattr(
        f"{MODULE}_inpaint.retrieve_latents", lambda output, generator: output.latent_dist.mode()
    )
    theirs = make_stock(StableDiffusionXLInpaintPipeline, parts, scheduler)(
        PROMPTS,
        image=images,
        mask_image=[mask, mask],
        height=16,
        width=16,
        generator=[torch.Generator().manual_seed(0)] * 2,
        **common,
    ).images
    assert largest(ours.images, theirs, np.asarray(mask) > 0) <= 1
    assert ours.records[0].task == ("inpaint" if channels == 9 else "blended-inpaint")
    assert largest(ours.images, images, np.asarray(mask) == 0) == 0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_editing_equals_diffusers(tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, images = make_task_model(tmp_path, "edit", make_sdxl), [photo(seed=1), photo(seed=2)]
    common = {"num_inference_steps": 4, "guidance_scale": 4.0, "image_guidance_scale": 1.5}
    ours = (
        Pipeline(parts).generate(PROMPTS, image=images, scheduler=scheduler, latents=NOISE, **common).images
    )
    theirs = make_stock(StableDiffusionXLInstructPix2PixPipeline, parts, scheduler)(
        PROMPTS, image=images, height=16, width=16, latents=NOISE, **common
    ).images
    assert largest(ours, theirs) <= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guess_mode", [False, True])
def test_a_controlnet_equals_that_of_diffusers(tmp_path: Path, scheduler: str, guess_mode: bool) -> None:
    parts = make_sdxl(tmp_path)
    net = make_controlnet(parts)
    parts.controls["depth"] = ControlNetwork("depth", "net", "0" * 64, net)
    common = {"num_inference_steps": 4, "guidance_scale": 4.0, "guess_mode": guess_mode}
    ours = Pipeline(parts).generate(
        PROMPTS,
        control={"depth": [(hint, 0.8) for hint in hints()]},
        scheduler=scheduler,
        latents=NOISE,
        **common,
    )
    theirs = make_stock(StableDiffusionXLControlNetPipeline, parts, scheduler, controlnet=net)(
        PROMPTS,
        image=hints(),
        controlnet_conditioning_scale=0.8,
        latents=NOISE,
        height=16,
        width=16,
        **common,
    ).images
    assert largest(ours.images, theirs) <= 1
    plain = Pipeline(make_sdxl(tmp_path / "plain")).generate(
        PROMPTS, scheduler=scheduler, latents=NOISE, num_inference_steps=4, guidance_scale=4.0
    )
    assert largest(ours.images, plain.images) > 1


@pytest.mark.parametrize(
    ("task", "pipeline_class"),
    [("inpaint", StableDiffusionXLInpaintPipeline), ("edit", StableDiffusionXLInstructPix2PixPipeline)],
)
def test_a_model_of_a_task_is_saved_for_its_stock_pipeline(
    tmp_path: Path, task: str, pipeline_class: Any
) -> None:
    save_parts(make_task_model(tmp_path / "tokenizers", task, make_sdxl), tmp_path / "m")
    back = load_parts(tmp_path / "m")
    assert back.task == task and back.family.name == "sdxl"
    assert (
        pipeline_class.from_pretrained(tmp_path / "m").unet.config.in_channels == back.denoiser.input_channels
    )
