"""Images controlled by ControlNets: equal to diffusers' pipeline, and what must hold whatever the network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from ldm.errors import LdmWarning
from ldm.models.control.controlnet import ControlOptions, residuals, with_controlnets
from ldm.models.control.networks import ControlNetwork
from ldm.pipeline.guide_model import GuideModel
from ldm.pipeline.pipeline import Pipeline
from ldm.types import Conditioning, Step
from tests.support.tiny_controls import hints, make_controlnet
from tests.support.tiny_images import NOISE, PROMPTS, box_mask, photo, pixels, stock_scheduler
from tests.support.tiny_models import make_sd1

SCHEDULERS = ["ddim", "euler", "dpmpp_2m", "unipc", "pndm", "lms"]
KINDS = ("depth", "pose")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A tiny SD1 with a ControlNet for each of two kinds."""
    parts = make_sd1(tmp_path_factory.mktemp("tokenizer"))
    for seed, kind in enumerate(KINDS):
        parts.controls[kind] = ControlNetwork(kind, f"net-{kind}", "0" * 64, make_controlnet(parts, seed))
    return Pipeline(parts)


def stock(pipeline: Pipeline, kinds: tuple[str, ...], scheduler: str) -> Any:
    nets = [pipeline.parts.controls[kind].network for kind in kinds]
    made = StableDiffusionControlNetPipeline(
        vae=pipeline.autoencoder.vae,
        text_encoder=pipeline.text_encoder.model,
        tokenizer=pipeline.text_encoder.tokenizer,
        unet=pipeline.denoiser.unet,
        controlnet=nets[0] if len(nets) == 1 else nets,
        scheduler=stock_scheduler(scheduler, pipeline.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


USES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "one net": (("depth",), {}),
    "two nets": (KINDS, {}),
    "guess mode": (("depth",), {"guess_mode": True}),
    "guess mode without guidance": (("depth",), {"guess_mode": True, "guidance_scale": 1.0}),
    "in a part of the steps": (("depth",), {"control_interval": (0.2, 0.8)}),
}
CASES = [("one net", name) for name in SCHEDULERS] + [(use, "ddim") for use in USES if use != "one net"]


@pytest.mark.parametrize(("use", "scheduler"), CASES)
def test_images_equal_those_of_diffusers(pipeline: Pipeline, use: str, scheduler: str) -> None:
    """Two prompts with two images each; the prompts' hints are different."""
    kinds, options = USES[use]
    noise = torch.cat([NOISE, NOISE.flip(-1)])
    common = {"num_inference_steps": 5, "guidance_scale": 4.0, **options}
    given = {kind: hints()[:: 1 if kind == "depth" else -1] for kind in kinds}
    scales = dict(zip(kinds, (0.8, 0.5), strict=False))
    ours = pipeline.generate(
        PROMPTS,
        control={kind: [(image, scales[kind]) for image in images] for kind, images in given.items()},
        scheduler=scheduler,
        latents=noise,
        num_images=2,
        **common,
    ).images
    start, end = common.pop("control_interval", (0.0, 1.0))
    columns = list(given.values())
    theirs = stock(pipeline, kinds, scheduler)(
        PROMPTS,
        image=columns[0] if len(kinds) == 1 else [list(row) for row in zip(*columns, strict=True)],
        controlnet_conditioning_scale=scales[kinds[0]] if len(kinds) == 1 else list(scales.values()),
        control_guidance_start=start,
        control_guidance_end=end,
        num_images_per_prompt=2,
        negative_prompt=["", ""],
        latents=noise,
        **common,
    ).images
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(pixels(mine) - pixels(other)).max() <= 1
    assert np.abs(pixels(ours[0]) - pixels(ours[2])).max() > 1


@pytest.mark.parametrize("guidance", ["cfg", "pag"])
def test_guess_mode_controls_every_prompt_that_is_joined(pipeline: Pipeline, guidance: str) -> None:
    """A prompt joined with itself, each with half of the weight, is that prompt; its negative is not controlled."""
    options: dict[str, Any] = {
        "num_inference_steps": 2, "seed": 3, "guidance_scale": 4.0, "guess_mode": True, "guidance": guidance,
        "prompt_weights": "a1111", "control": {"depth": hints()[0]},
    }  # fmt: skip
    joined = pipeline.generate("a red apple :0.5 AND a red apple :0.5", **options).latents
    torch.testing.assert_close(
        joined, pipeline.generate("a red apple", **options).latents, rtol=1e-3, atol=1e-3
    )
    free = pipeline.generate("a red apple", **{**options, "guess_mode": False}).latents
    assert not torch.allclose(joined, free, rtol=1e-3, atol=1e-3)


def test_scale_zero_is_the_model_alone(pipeline: Pipeline) -> None:
    alone = pipeline.generate(PROMPTS, num_inference_steps=2, seed=3).latents
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}
    controlled = pipeline.generate(PROMPTS, control={"depth": (hints()[0], 0.0)}, **options).latents
    assert torch.equal(controlled, alone)
    assert not torch.equal(
        pipeline.generate(PROMPTS, control={"depth": hints()[0]}, **options).latents, alone
    )


def test_residuals_grow_with_the_scale_and_add_up(pipeline: Pipeline) -> None:
    first, second = (pipeline.parts.controls[kind].network for kind in KINDS)
    latents, hint = NOISE, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    told = Conditioning(
        torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3)), hints=(hint, hint)
    )
    timesteps = torch.tensor([30, 700])
    one = residuals(first, latents, timesteps, told, hint, 1.0)
    half = residuals(first, latents, timesteps, told, hint, 0.5)
    other = residuals(second, latents, timesteps, told, hint, 0.25)
    torch.testing.assert_close(half[1], 0.5 * one[1])
    seen: list[Conditioning] = []

    def denoiser(
        latents: Any, timesteps: Any, conditioning: Conditioning, *, step: Step | None = None
    ) -> Any:
        seen.append(conditioning)
        return latents

    with_controlnets(denoiser, [(first, 1.0), (second, 0.25)])(latents, timesteps, told)
    assert seen[0].hints == () and seen[0].mid_residual is not None
    for found, a, b in zip(seen[0].down_residuals, one[0], other[0], strict=True):
        torch.testing.assert_close(found, a + b)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.0, 1.0), [0, 1, 2, 3, 4]), ((0.2, 0.8), [1, 2, 3]), ((0.3, 0.7), [2]), ((0.0, 0.1), [])],
)
def test_steps_that_are_controlled(interval: tuple[float, float], expected: list[int]) -> None:
    options = ControlOptions(interval, num_steps=5)
    assert [i for i in range(5) if options.includes(Step(i, i, 0.0, 0.0, i / 5))] == expected


def test_control_works_with_images_and_masks(pipeline: Pipeline) -> None:
    """Also with a sampler that evaluates the denoiser twice a step, and each image as it is alone."""
    image, mask, hint = photo(), box_mask((16, 16), (0, 0, 7, 15)), hints()
    options: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "heun", "image": image, "mask": mask}
    plain = pipeline.generate(PROMPTS, **options).images
    made = pipeline.generate(PROMPTS, control={"pose": hint}, **options).images
    outside = np.asarray(mask) == 0
    for number, (one, without) in enumerate(zip(made, plain, strict=True)):
        assert np.array_equal(pixels(one)[outside], pixels(image)[outside])
        assert not np.array_equal(pixels(one), pixels(without))
        alone = pipeline.generate(PROMPTS[number], control={"pose": hint[number]}, **options).images[0]
        assert np.abs(pixels(alone) - pixels(one)).max() <= 1


def test_low_memory_gives_the_same_images(pipeline: Pipeline, tmp_path: Path) -> None:
    whole = pipeline.generate("a", control={"pose": hints()[0]}, num_inference_steps=1).latents
    pipeline.low_memory = True
    try:
        assert torch.equal(
            whole, pipeline.generate("a", control={"pose": hints()[0]}, num_inference_steps=1).latents
        )
    finally:
        pipeline.low_memory = False


def test_the_second_model_of_autoguidance_is_controlled_too(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that guides itself changes nothing."""
    monkeypatch.setattr(pipeline, "guide_model", GuideModel(pipeline.denoiser, ""))

    def made(**settings: Any) -> Any:
        control = {"depth": [(hints()[0], 1.0)]}
        return pipeline.generate("a", control=control, num_inference_steps=2, seed=1, **settings).latents

    with pytest.warns(LdmWarning, match="the guide model is not used"):
        alone = made(guidance_scale=1.0)
    torch.testing.assert_close(made(guidance="autoguidance", guidance_scale=4.0), alone)
