"""Our images against those of diffusers' own StableDiffusionPipeline, from the same latents and generators."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.models.fresh import add_guidance_embedding
from ldm.models.parts import ModelParts
from ldm.noise import image_generators
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_images import SEED, stock_scheduler
from tests.support.tiny_models import ZERO_SNR_SCHEDULER, make_sd1, make_sd2

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:Should have t[ab][<>]=t[01] but got:UserWarning"
    ),  # torchsde's rounding
]

SD1 = [(name, "sd1") for name, entry in SCHEDULERS.items() if entry.available]
SD2 = [(name, "sd2") for name, _ in SD1 if not name.startswith("kdpm2")]  # these take a second to set up
PROMPTS = ["a red apple on a table", "the large blue square above a small green circle"]


class Pair:
    """One model twice: our pipeline and the stock one, around the same networks."""

    def __init__(self, parts: Any) -> None:
        self.ours = Pipeline(parts)
        self.stock = StableDiffusionPipeline(
            vae=parts.autoencoder.vae,
            text_encoder=parts.text_encoder.model,
            tokenizer=parts.text_encoder.tokenizer,
            unet=parts.denoiser.unet,
            scheduler=stock_scheduler("ddim", parts.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.stock.set_progress_bar_config(disable=True)

    def check(
        self, scheduler: str, *, karras: bool = False, given_latents: bool = False, **settings: Any
    ) -> None:
        """Make two images with each and compare them: 1/255 at most."""
        latents = (
            torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) if given_latents else None
        )
        common = {"num_inference_steps": 4, "guidance_scale": 5.0, "guidance_rescale": 0.0, **settings}
        negative = common.pop("negative_prompt", "")
        ours = self.ours.generate(
            PROMPTS,
            negative_prompt=negative,
            seed=SEED,
            scheduler=scheduler,
            karras=karras,
            latents=latents,
            **common,
        ).images
        self.stock.scheduler = stock_scheduler(scheduler, self.ours.scheduler_config, karras)
        stock = self.stock(
            PROMPTS,
            negative_prompt=[negative] * 2,
            generator=image_generators([SEED] * 2),
            latents=latents,
            height=16,
            width=16,
            **common,
        ).images
        for our_image, stock_image in zip(ours, stock, strict=True):
            assert _difference(our_image, stock_image) <= 1
        assert _difference(ours[0], ours[1]) > 1


def _difference(first: Image.Image, second: Image.Image) -> int:
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


def told_guidance(parts: ModelParts) -> ModelParts:
    """A model whose UNet is told the guidance scale, as distilled ones are."""
    unet = parts.denoiser.unet
    add_guidance_embedding(unet)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight)
    return parts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {
        "sd1": Pair(make_sd1(tmp_path_factory.mktemp("sd1"))),
        "sd2": Pair(make_sd2(tmp_path_factory.mktemp("sd2"))),
        "told guidance": Pair(told_guidance(make_sd2(tmp_path_factory.mktemp("told")))),
        "zero_snr": Pair(make_sd2(tmp_path_factory.mktemp("zero_snr"), ZERO_SNR_SCHEDULER)),
    }


@pytest.mark.parametrize(("scheduler", "model"), SD1 + SD2)
def test_images_equal(models: dict[str, Pair], scheduler: str, model: str) -> None:
    models[model].check(scheduler)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "pndm"])
@pytest.mark.parametrize("model", ["sd1", "sd2"])
def test_negative_prompt_and_rescale(models: dict[str, Pair], model: str, scheduler: str) -> None:
    models[model].check(scheduler, negative_prompt="a small circle", guidance_rescale=0.7)


@pytest.mark.parametrize("scheduler", ["euler_a", "ddpm", "unipc"])
@pytest.mark.parametrize("model", ["sd1", "sd2"])
def test_given_latents_without_guidance(models: dict[str, Pair], model: str, scheduler: str) -> None:
    models[model].check(scheduler, given_latents=True, guidance_scale=1.0)


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m", "lms"])
def test_karras(models: dict[str, Pair], scheduler: str) -> None:
    models["sd1"].check(scheduler, karras=True, num_inference_steps=7)


@pytest.mark.parametrize(
    "scheduler", ["ddpm", "ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm"]
)
def test_zero_terminal_snr(models: dict[str, Pair], scheduler: str) -> None:
    models["zero_snr"].check(scheduler)


@pytest.mark.parametrize("scheduler", ["lcm", "ddim"])
def test_a_guidance_scale_that_the_unet_is_told(models: dict[str, Pair], scheduler: str) -> None:
    """Its images depend on the scale, and are made in one branch."""
    pair, rows = models["told guidance"], []
    hook = pair.ours.denoiser.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    pair.check(scheduler, guidance_scale=7.3, given_latents=True)
    low, high = (pair.ours.generate("a red apple", guidance_scale=scale).images[0] for scale in (2.0, 7.3))
    hook.remove()
    assert _difference(low, high) > 1 and set(rows) == {1, 2}
