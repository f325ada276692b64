"""Tasks and control networks with a tiny SDXL, against diffusers' own pipelines for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from transformers import CLIPImageProcessor

from ldm.errors import UserError
from ldm.io.files import write_tensors
from ldm.models.control.load_ip_adapter import load_image_prompts
from ldm.models.control.load_networks import load_controls
from ldm.models.control.networks import ControlNetwork
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.parts import ModelParts
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.pipeline import Pipeline
from tests.support.slow_cases import rest_slow
from tests.support.tiny_controls import hints, ip_weights, make_controlnet, make_encoder
from tests.support.tiny_images import NOISE, PROMPTS, FixedNoise, box_mask, largest, photo, stock_scheduler
from tests.support.tiny_models import make_sd1, make_sdxl
from tests.support.tiny_task_models import make_task_model

SCHEDULERS = rest_slow(["euler", "dpmpp_2m", "heun"], "euler")
MODULE = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"


def make_stock(cls: Any, parts: ModelParts, scheduler: str, **more: Any) -> Any:
    if cls is not StableDiffusionXLAdapterPipeline:  # which has none
        more["add_watermarker"] = False
    own = stock_scheduler(scheduler, parts.scheduler_config)
    made = cls(**parts.components(), scheduler=own, **more)
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


def three_levels(parts: ModelParts) -> ModelParts:
    """With a UNet of three levels, the first without attention, as in SDXL."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel.from_config(
        parts.denoiser.unet.config,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 32),
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 1, 1),
    )
    parts.denoiser = UNetDenoiser(unet.eval().requires_grad_(False))
    return parts


def make_adapter(**changes: Any) -> T2IAdapter:
    torch.manual_seed(1)
    settings = {"channels": [16, 32, 32, 32], "num_res_blocks": 1, "downscale_factor": 4, **changes}
    return T2IAdapter(adapter_type="full_adapter_xl", **settings).eval().requires_grad_(False)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_t2i_adapter_equals_diffusers(tmp_path: Path, scheduler: str) -> None:
    parts, adapter = three_levels(make_sdxl(tmp_path)), make_adapter()
    pipeline, common = Pipeline(parts), {"num_inference_steps": 4, "guidance_scale": 4.0}
    plain = pipeline.generate(PROMPTS, scheduler=scheduler, latents=NOISE, **common)
    parts.controls["pose"] = ControlNetwork("pose", "pose", "0" * 64, adapter)
    ours = pipeline.generate(
        PROMPTS,
        control={"pose": [(hint, 0.7) for hint in hints()]},
        scheduler=scheduler,
        latents=NOISE,
        **common,
    )
    theirs = make_stock(StableDiffusionXLAdapterPipeline, parts, scheduler, adapter=adapter)(
        PROMPTS,
        image=hints(),
        adapter_conditioning_scale=0.7,
        latents=NOISE,
        height=16,
        width=16,
        **common,
    ).images
    assert largest(ours.images, theirs) <= 1
    assert largest(ours.images, plain.images) > 1


def test_a_t2i_adapter_fits_any_size_and_no_other_family(tmp_path: Path) -> None:
    parts = three_levels(make_sdxl(tmp_path / "a"))
    make_adapter().save_pretrained(tmp_path / "xl")
    T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2).save_pretrained(tmp_path / "sd1")
    parts.controls |= load_controls({"pose": tmp_path / "xl"}, parts)
    odd = Pipeline(parts).generate("a", control={"pose": photo(22, 18)}, num_inference_steps=1)
    assert odd.images[0].size == (22, 18)
    for folder, model, said in (
        ("xl", make_sd1(tmp_path / "b"), "full_adapter_xl, which is for SDXL"),
        ("sd1", parts, "full_adapter, which is not for SDXL"),
    ):
        with pytest.raises(UserError, match=said):
            load_controls({"pose": tmp_path / folder}, model)


@pytest.mark.parametrize("kind", rest_slow(["base", "plus"], "base"))
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_ip_adapter_equals_diffusers(tmp_path: Path, scheduler: str, kind: str) -> None:
    parts, common = make_sdxl(tmp_path), {"num_inference_steps": 4, "guidance_scale": 4.0}
    pipeline = Pipeline(parts)
    plain = pipeline.generate(PROMPTS, scheduler=scheduler, latents=NOISE, **common)
    make_encoder().save_pretrained(tmp_path / "image_encoder")
    write_tensors(tmp_path / "ip.safetensors", ip_weights(parts, kind))
    parts.image_prompts = load_image_prompts([tmp_path / "ip.safetensors"], None, parts)
    reference = photo(20, 20, seed=7)
    ours = pipeline.generate(
        PROMPTS, reference=(reference, 0.6), scheduler=scheduler, latents=NOISE, **common
    )
    assert largest(ours.images, plain.images) > 1
    theirs = make_stock(StableDiffusionXLPipeline, parts, scheduler)
    processor = CLIPImageProcessor(size=16, crop_size=16)
    theirs.register_modules(image_encoder=make_encoder(), feature_extractor=processor)
    theirs.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.safetensors")
    theirs.set_ip_adapter_scale(0.6)
    made = theirs(PROMPTS, ip_adapter_image=reference, latents=NOISE, height=16, width=16, **common).images
    assert largest(ours.images, made) <= 1
