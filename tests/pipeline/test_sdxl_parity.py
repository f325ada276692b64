"""Images of a tiny SDXL against those of diffusers' own pipelines, from the same latents and generators."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image

from ldm.models.loading.model import ModelParts, save_parts
from ldm.noise import image_generators
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from tests.support.slow_cases import rest_slow
from tests.support.tiny_images import SEED, clean_latents, photo, pixels, stock_scheduler
from tests.support.tiny_models import make_refiner, make_sdxl

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01] but got:UserWarning"),
]

SCHEDULERS = ["euler", "euler_a", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun", "lms", "deis"]
FROM_IMAGE = ["euler", "ddim", "dpmpp_2m", "unipc", "heun", "lms", "deis", "dpmpp_2s"]
PROMPTS = [
    "a red apple on a table",
    "the large blue square above a small green circle",
    "a small blue apple",
]


@dataclass
class Pair:
    """One model twice: our pipeline and the stock one, around the same networks."""

    ours: Pipeline
    stock: Any

    def images(
        self, scheduler: str, prompts: list[str], theirs: dict[str, Any], **settings: Any
    ) -> tuple[list[Image.Image], list[Image.Image]]:
        """With the names of settings that differ in `theirs`."""
        common = {"num_inference_steps": 3, "guidance_scale": 5.0, **settings}
        ours = self.ours.generate(prompts, seed=SEED, scheduler=scheduler, **common).images
        self.stock.scheduler = stock_scheduler(scheduler, self.ours.scheduler_config)
        shared = {name: common[name] for name in ("num_inference_steps", "guidance_scale")}
        more = {"height": 16, "width": 16, "generator": image_generators([SEED] * len(prompts))}
        return ours, self.stock(prompts, **{**more, **shared, **theirs}).images


def make_stock(parts: ModelParts, kind: Any = StableDiffusionXLPipeline, **settings: Any) -> Any:
    networks = {"text_encoder": None, "tokenizer": None, **parts.components()}
    made = kind(
        **networks,
        scheduler=stock_scheduler("euler", parts.scheduler_config),
        force_zeros_for_empty_prompt=parts.settings["force_zeros_for_empty_prompt"],
        add_watermarker=False,
        **settings,
    )
    made.set_progress_bar_config(disable=True)
    return made


def assert_alike(ours: list[Image.Image], theirs: list[Image.Image]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(pixels(mine) - pixels(other)).max() <= 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parts = make_sdxl(tmp_path_factory.mktemp("tokenizers"))
    return Pair(Pipeline(parts), make_stock(parts))


@pytest.mark.parametrize("scheduler", rest_slow(SCHEDULERS, "euler", "euler_a", "dpmpp_2m", "heun"))
def test_images_equal_with_guidance(pair: Pair, scheduler: str) -> None:
    ours, theirs = pair.images(scheduler, PROMPTS, {})
    assert_alike(ours, theirs)
    assert np.abs(pixels(ours[0]) - pixels(ours[1])).max() > 1
    assert_alike(*pair.images(scheduler, PROMPTS[:1], {"negative_prompt": "blue"}, negative_prompt="blue"))


@pytest.mark.parametrize("scheduler", rest_slow(SCHEDULERS, "euler", "ddpm"))
def test_images_equal_without_guidance(pair: Pair, scheduler: str) -> None:
    for prompts in (PROMPTS[:1], PROMPTS):
        assert_alike(*pair.images(scheduler, prompts, {}, guidance_scale=1.0))


SIZES = {"original_size": (40, 24), "crop": (3, 5), "target_size": (20, 28)}
NEGATIVE_SIZES = {"negative_original_size": (9, 7), "negative_crop": (2, 1), "negative_target_size": (12, 8)}


def in_stock_names(sizes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {name.replace("crop", "crops_coords_top_left"): size for name, size in sizes.items()}


def test_sizes_and_second_prompts_are_those_of_diffusers(pair: Pair) -> None:
    plain, _ = pair.images("euler", PROMPTS[:1], {})
    for prompts, sizes, theirs in (
        (PROMPTS, SIZES, in_stock_names(SIZES)),
        # theirs mixes up the rows of more than one image: tests/museum/test_sdxl_negative_sizes.py
        (PROMPTS[:1], NEGATIVE_SIZES, in_stock_names(NEGATIVE_SIZES)),
        (PROMPTS[:1], SIZES | NEGATIVE_SIZES, in_stock_names(SIZES | NEGATIVE_SIZES)),
        (
            PROMPTS[:1],
            {"prompt_2": "a table", "negative_prompt": "blue", "negative_prompt_2": "red"},
            {"prompt_2": "a table", "negative_prompt": "blue", "negative_prompt_2": "red"},
        ),
    ):
        settings: dict[str, Any] = sizes
        ours, stock = pair.images("euler", prompts, theirs, **settings)
        assert_alike(ours, stock)
        assert np.abs(pixels(ours[0]) - pixels(plain[0])).max() > 1, settings


def test_a_model_trained_without_zeros_reads_the_empty_prompt(pair: Pair) -> None:
    """A blank prompt has no words, but is not empty: it is encoded even where the empty prompt has zeros."""
    blank, theirs = pair.images("euler", PROMPTS, {"negative_prompt": [""] * 3}, negative_prompt=" ")
    assert_alike(blank, theirs)
    encoders = pair.ours.text_encoder.encoders
    for each in encoders:
        each.zeros_for_empty = False
    try:
        said = pair.ours.generate(PROMPTS, seed=SEED, scheduler="euler", num_inference_steps=3).latents
    finally:
        for each in encoders:
            each.zeros_for_empty = True
    given = pair.ours.generate(
        PROMPTS, seed=SEED, scheduler="euler", num_inference_steps=3, negative_prompt=" "
    )
    zeros = pair.ours.generate(PROMPTS, seed=SEED, scheduler="euler", num_inference_steps=3)
    assert isinstance(said, torch.Tensor) and isinstance(zeros.latents, torch.Tensor)
    assert torch.equal(said, given.latents) and not torch.equal(said, zeros.latents)  # type: ignore[arg-type]


class SameNoise:
    """Replaces diffusers' draws with those of our seeds."""

    def __call__(self, shape: Any, generator: Any = None, **_: Any) -> torch.Tensor:
        own = image_generators([SEED] * shape[0])
        return torch.cat([torch.randn(1, *shape[1:], generator=each) for each in own])


@pytest.mark.parametrize("refines", [False, True])
@pytest.mark.parametrize("scheduler", rest_slow(FROM_IMAGE, "euler", "heun"))
def test_image_to_image_equals_diffusers(
    pair: Pair,
    refiner: Pair,
    scheduler: str,
    refines: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the base model, and with the refiner, which is told an aesthetic score in place of the target size."""
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", SameNoise())
    used = (
        refiner if refines else Pair(pair.ours, make_stock(pair.ours.parts, StableDiffusionXLImg2ImgPipeline))
    )
    images = [photo(seed=number) for number in range(3)]
    told = {"aesthetic_score": 7.0, "negative_aesthetic_score": 1.0} if refines else {}
    ours = used.ours.generate(
        PROMPTS,
        image=images,
        seed=SEED,
        scheduler=scheduler,
        num_inference_steps=6,
        guidance_scale=5.0,
        strength=0.5,
        original_size=(30, 20),
        crop=(1, 2),
        **told,
    ).images
    used.stock.scheduler = stock_scheduler(scheduler, used.ours.scheduler_config)
    theirs = used.stock(
        PROMPTS,
        image=clean_latents(used.ours, images),
        num_inference_steps=6,
        guidance_scale=5.0,
        strength=0.5,
        original_size=(30, 20),
        target_size=(16, 16),
        crops_coords_top_left=(1, 2),
        negative_crops_coords_top_left=(1, 2),
        **told,
    ).images
    assert_alike(ours, theirs)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parts = make_refiner(tmp_path_factory.mktemp("tokenizer"))
    stock = make_stock(parts, StableDiffusionXLImg2ImgPipeline, requires_aesthetics_score=True)
    return Pair(Pipeline(parts), stock)


def test_latents_with_a_mean_and_a_deviation_for_each_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As newer autoencoders have them, in both directions: from noise, and from an image."""
    parts = make_sdxl(tmp_path)
    statistics = {"latents_mean": (0.5, -1.0, 0.2, 0.0), "latents_std": (2.0, 0.5, 1.5, 1.0)}
    parts.autoencoder.vae.register_to_config(**statistics)
    own = Pair(Pipeline(parts), make_stock(parts))
    assert_alike(*own.images("euler", PROMPTS, {}))
    latents = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(parts.autoencoder.unscale(parts.autoencoder.scale(latents)), latents)
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", SameNoise())
    own.stock = make_stock(parts, StableDiffusionXLImg2ImgPipeline)
    image, common = photo(seed=1), {"num_inference_steps": 4, "guidance_scale": 5.0, "strength": 0.5}
    ours = own.ours.generate("red", image=image, seed=SEED, scheduler="euler", **common).images
    assert_alike(ours, own.stock("red", image=clean_latents(own.ours, [image]), **common).images)


def test_an_autoencoder_that_overflows_in_half_precision_does_not(tmp_path: Path) -> None:
    """It computes in float32 whatever the model's number format is, so that no image is black."""
    parts = make_sdxl(tmp_path / "tokenizers")
    with torch.no_grad():  # a norm follows, so that the image stays as it was
        parts.autoencoder.vae.decoder.conv_in.weight *= 1e6
        parts.autoencoder.vae.decoder.conv_in.bias *= 1e6
    save_parts(parts, tmp_path / "m")
    half, whole = (
        load_pipeline(tmp_path / "m", device="cpu", dtype=dtype) for dtype in ("bfloat16", "float32")
    )
    latents = half.generate("red", seed=1, num_inference_steps=1).latents
    assert isinstance(latents, torch.Tensor) and next(half.denoiser.parameters()).dtype == torch.bfloat16
    pixel_values = half.autoencoder.decode(latents)
    assert torch.equal(pixel_values, whole.autoencoder.decode(latents))
    stored = whole.autoencoder.vae.to(torch.float16)
    assert not stored.decode(latents.half()).sample.isfinite().all()
