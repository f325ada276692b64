"""Random images, masks and stock pipelines for tests of images from images."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.diffusion.schedulers import scheduler_class
from ldm.pipeline.pipeline import Pipeline

SEED = 5
PROMPTS = ["a red apple on a table", "the large blue square above a small green circle"]
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def stock_scheduler(name: str, config: dict[str, Any], karras: bool = False) -> Any:
    """As a user of diffusers makes one."""
    entry = SCHEDULERS[name]
    more: dict[str, Any] = {"use_karras_sigmas": True} if karras else {}
    if name == "dpmpp_sde":  # takes seeds where others take generators
        more["noise_sampler_seed"] = [SEED] * 2
    return scheduler_class(entry.class_name).from_config({**config, **entry.overrides, **more})


def photo(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """White inside the box, its last row and column included."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def largest(first: list[Image.Image], second: list[Image.Image], where: Any = ...) -> int:
    """The largest difference between two lists of images, in levels of 255."""
    pairs = zip(first, second, strict=True)
    return max(int(np.abs(pixels(a) - pixels(b))[where].max()) for a, b in pairs)


def stock(cls: Any, pipeline: Pipeline, scheduler: str) -> Any:
    made = cls(
        vae=pipeline.autoencoder.vae,
        text_encoder=pipeline.text_encoder.model,
        tokenizer=pipeline.text_encoder.tokenizer,
        unet=pipeline.denoiser.unet,
        scheduler=stock_scheduler(scheduler, pipeline.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def clean_latents(pipeline: Pipeline, images: list[Image.Image]) -> torch.Tensor:
    """The scaled mean of each posterior; the stock pipelines take four channels for latents."""
    values = torch.stack(
        [torch.tensor(pixels(image) / 127.5 - 1).permute(2, 0, 1).float() for image in images]
    )
    return pipeline.autoencoder.scale(pipeline.autoencoder.encode(values).chunk(2, dim=1)[0])


class FixedNoise:
    """Replaces diffusers' draws of initial noise, whose order differs between its pipelines."""

    def __call__(
        self, shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, **_: Any
    ) -> Any:
        return NOISE if tuple(shape) == tuple(NOISE.shape) else torch.randn(shape, generator=generator[0])
