"""A trial: one image generated from fixed noise and one image encoded, which every reader of a model must reproduce.

A model of a task with input images, such as inpainting, is given the image to encode, in 8 bits, and a mask. A model
that enlarges is given a smaller one.

Axis letters: C latent channels, H W pixels, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.diffusion.interval import EVERYWHERE
from ldm.diffusion.scheduler_names import OWN_SCHEDULER
from ldm.diffusion.schedulers import adds_noise, can_run_own
from ldm.errors import UserError
from ldm.export.verify.readers import ARGUMENTS
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.model import ModelParts
from ldm.models.low_resolution import LowResolutionNoise
from ldm.noise import image_generators, normal_per_image
from ldm.pipeline.pipeline import Pipeline
from ldm.tasks import find_task
from ldm.tasks.upscale import low_resolution_seed

PROMPT = "a red apple on a wooden table, a photograph"
NEGATIVE_PROMPT = "blurry"
LARGEST_SIDE_PX = 256
"""The largest trial image. Larger models generate a smaller image than usual; it is compared, not shown."""


@dataclass(frozen=True)
class Trial:
    """The settings: enough steps and guidance that each part of a model has an effect. Height and width in pixels.

    Attributes:
        pipeline_class: the stock pipeline that the model is for.
        scheduler_class: the sampler in place of the model's own, which would not run as the model needs it.
        image_guidance_scale: for a model that edits.
        given: the names of the images that the model is given.
        factor: how many times larger the result is than the image given.
        noise_level: of the image given to a model that enlarges.
        low_resolution_seed: of the generator of that noise.
    """

    height: int
    width: int
    prompt: str
    negative_prompt: str
    pipeline_class: str
    scheduler_class: str | None = None
    num_inference_steps: int = 4
    guidance_scale: float = 3.0
    image_guidance_scale: float | None = None
    seed: int = 20
    given: tuple[str, ...] = ()
    factor: int = 1
    noise_level: int | None = None
    low_resolution_seed: int | None = None


IMAGE_GUIDANCE_SCALE = 1.5


def trial_for(parts: ModelParts) -> Trial:
    """A trial at the model's own size, or a smaller one of the same shape.

    Raises:
        UserError: diffusers has no pipeline for models of this task.
    """
    task = find_task(parts.task)
    pipeline_class = parts.family.pipeline_for(task.name)
    if task.given and pipeline_class not in ARGUMENTS:
        raise UserError(
            f"diffusers has no pipeline for a model trained for {task.name}",
            "use it with `ldm generate`; it cannot be exported or verified",
        )
    height, width = parts.defaults.height, parts.defaults.width
    num_halvings = len(parts.denoiser.unet.config.block_out_channels) - 1
    multiple = parts.autoencoder.pixels_per_latent * 2**num_halvings
    scale = min(1.0, LARGEST_SIDE_PX / max(height, width))
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))
    prompt, negative_prompt = (_within_context(parts, text) for text in (PROMPT, NEGATIVE_PROMPT))
    if parts.denoiser.embeds_guidance:
        negative_prompt = ""  # it has no branch for one
    trial = Trial(
        height,
        width,
        prompt,
        negative_prompt,
        pipeline_class,
        scheduler_class=None if can_run_own(parts.scheduler_config) else "DDIMScheduler",
        image_guidance_scale=IMAGE_GUIDANCE_SCALE if task.name == "edit" else None,
        given=tuple(task.given),
    )
    return _enlarging(trial, parts) if task.enlarges else trial


def _enlarging(trial: Trial, parts: ModelParts) -> Trial:
    """A trial of a model that enlarges.

    Its stock pipeline draws the noise of the steps from the generator of the low-resolution image's noise, where ours
    has one for each. So it is compared with a sampler that draws none.
    """
    draws = adds_noise(OWN_SCHEDULER, parts.scheduler_config)
    most = (parts.low_resolution or LowResolutionNoise()).max_noise_level
    return replace(
        trial,
        scheduler_class="DDIMScheduler" if draws else trial.scheduler_class,
        factor=parts.autoencoder.pixels_per_latent,
        noise_level=min(GenerationSettings().noise_level, most),
        low_resolution_seed=low_resolution_seed(trial.seed),
    )


def _within_context(parts: ModelParts, prompt: str) -> str:
    """As many words as fit in one context: some libraries cut longer prompts off, others split them."""
    while parts.text_encoder.truncated_words(prompt):
        prompt = prompt.rpartition(" ")[0]
    return prompt


def trial_image(trial: Trial, factor: int = 1) -> Tensor:
    """An image [1, 3, H / factor, W / factor] in -1 to 1.

    With factor 1 it is for the autoencoder's encoder, which generation does not use.
    """
    size = (trial.height // factor, trial.width // factor)
    return normal_per_image(image_generators([trial.seed]), (3, *size)).tanh()


def given_image(trial: Trial) -> Image.Image:
    """`trial_image` in 8 bits."""
    rounded = ((trial_image(trial, trial.factor)[0] / 2 + 0.5) * 255).round().to(torch.uint8)
    return Image.fromarray(rounded.permute(1, 2, 0).numpy())


def given_mask(trial: Trial, pixels_per_latent: int) -> Image.Image:
    """A mask of whole latents, which all programs scale down alike: a box that touches the right border."""
    height, width = trial.height // pixels_per_latent, trial.width // pixels_per_latent
    small = torch.zeros(height, width, dtype=torch.uint8)
    small[height // 4 : max(height // 4 + 1, 3 * height // 4), width // 3 :] = 255
    large = small.repeat_interleave(pixels_per_latent, 0).repeat_interleave(pixels_per_latent, 1)
    return Image.fromarray(large.numpy())


def given_images(parts: ModelParts, trial: Trial) -> dict[str, Image.Image]:
    """The images that the model is given, by the names of `generate`."""
    made = {"image": given_image(trial), "mask": given_mask(trial, parts.autoencoder.pixels_per_latent)}
    return {name: made[name] for name in trial.given}


def trial_inputs(parts: ModelParts, trial: Trial) -> dict[str, Tensor]:
    """A reader's inputs.

    Returns:
        `noise`, the initial standard normal noise [1, C, h, w]; `image`, the image to encode; and as `given_image` and
        `given_mask` [1, 3 or 1, H / factor, W / factor] in 0 to 1, the images that the model is given.
    """
    multiple = parts.autoencoder.pixels_per_latent
    shape = (parts.autoencoder.num_channels, trial.height // multiple, trial.width // multiple)
    given = {f"given_{name}": _unit(image) for name, image in given_images(parts, trial).items()}
    return {
        "noise": normal_per_image(image_generators([trial.seed]), shape),
        "image": trial_image(trial),
        **given,
    }


def _unit(image: Image.Image) -> Tensor:
    """[1, 3 or 1, H, W] in 0 to 1."""
    pixels = torch.from_numpy(np.atleast_3d(np.asarray(image, dtype=np.float32))) / 255
    return pixels.permute(2, 0, 1)[None].contiguous()


@torch.no_grad()
def trial_outputs(parts: ModelParts, trial: Trial) -> dict[str, Tensor]:
    """Our results: the image [1, 3, H, W] in 0 to 1, by the model's own scheduler, and the encoded image's mean.

    The image is as decoded, before the pixels outside a mask are put back, which a stock pipeline does not do.
    """
    inputs = trial_inputs(parts, trial)
    given: dict[str, Any] = given_images(parts, trial)
    if trial.factor == 1:
        given |= {"height": trial.height, "width": trial.width}
    made = Pipeline(parts).generate(
        trial.prompt,
        progress=False,
        negative_prompt=trial.negative_prompt,
        num_inference_steps=trial.num_inference_steps,
        guidance_scale=trial.guidance_scale,
        image_guidance_scale=trial.image_guidance_scale,
        guidance_rescale=0.0,
        guidance_interval=EVERYWHERE,  # like a stock pipeline, whatever the model's default
        scheduler="ddim" if trial.scheduler_class else OWN_SCHEDULER,
        seeds=[trial.seed],  # of the noise that some samplers add at each step
        noise_level=trial.noise_level,
        max_prompt_chunks=1,
        latents=inputs["noise"],
        **given,
    )
    pixels = (parts.autoencoder.decode(torch.stack(list(made.latents))) / 2 + 0.5).clamp(0, 1)
    return {"pixels": pixels, "encoded": parts.autoencoder.encode(inputs["image"]).chunk(2, dim=1)[0]}


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest of `differences`."""
    return max(differences(ours, theirs).values())


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """How far two results differ, by name, in 255ths: of the range of an image, or of the encoding's std.

    Infinite if a result is missing or has another size, or if a value is not finite.
    """
    return {name: _in_255ths(ours[name], theirs.get(name), name) for name in ("pixels", "encoded")}


def _in_255ths(one: Tensor, other: Tensor | None, name: str) -> float:
    if other is None or one.shape != other.shape or not bool(one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    unit = float(one.std()) if name == "encoded" else 1.0
    return float((one.double() - other.double()).abs().max() * 255) / max(unit, 1e-12)
