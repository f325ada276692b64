"""What is asked of a model: the settings of one call, completed and checked; and what comes of it."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from operator import index
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.diffusion.guidance import EVERYWHERE, Interval, check_interval, guide_with_negative
from ldm.diffusion.scheduler_names import SCHEDULERS
from ldm.errors import UserError, unknown_name, warn
from ldm.models.engines.feature_reuse import Engine, reuse_deep_features
from ldm.models.loading.folder import Defaults
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.record import write_png
from ldm.types import MAX_PROMPT_CHUNKS, Conditioning, Denoiser, Step
from ldm.version import __version__

LARGEST_SEED = 2**63 - 1

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"guidance_interval": (0.0, 0.5), "deep_features_every": 3},
    "full": {"guidance_interval": EVERYWHERE, "deep_features_every": 1},
}
"""Arguments of `Pipeline.generate` by name: what may be left out for speed, and leaving nothing out.

Without a preset, guidance is where the model's defaults have it.
"""

OnStep = Callable[[int, int, Step, Tensor], None]
"""Called after every sampling step with (steps done, steps in all, the step, latents [B, C, h, w])."""


@dataclass(frozen=True)
class Request:
    """The settings that all pictures of one call share; height and width in pixels."""

    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: Interval
    deep_features_every: int
    scheduler: str
    karras: bool
    height: int
    width: int
    max_prompt_chunks: int

    def picture_settings(self, prompt: str, seed: int, latents: Tensor | None = None) -> dict[str, Any]:
        """The settings of one picture, under the names of `Pipeline.generate`.

        Args:
            latents: its initial noise [C, h, w], where that was given. No seed makes it again: `latents_hash` stands
                for it, and `step_noise_seed` for what a sampler adds at each step.
        """
        interval = list(self.guidance_interval)  # as JSON has it
        settings = {"prompt": prompt, **asdict(self), "guidance_interval": interval, "seed": seed}
        if latents is None:
            return settings
        drawn = {"step_noise_seed": seed} if SCHEDULERS[self.scheduler].stochastic else {}
        return {**settings, "seed": None, "latents_hash": latents_hash(latents), **drawn}

    def denoiser_for(self, denoiser: UNetDenoiser | Engine, negative: Conditioning) -> Denoiser:
        """What one sampling calls: a denoiser with what this request asks of it, made anew for each sampling.

        Raises:
            UserError: the denoiser cannot use its deep features again.
        """
        reusing = reuse_deep_features(denoiser, self.deep_features_every)
        return guide_with_negative(
            reusing, negative, self.guidance_scale, self.guidance_rescale, self.guidance_interval
        )


LEFT_OUT: Mapping[str, Any] = {
    **{field.name: None for field in fields(Request)},
    **{"negative_prompt": "", "karras": False, "deep_features_every": 1},
}
"""What `Pipeline.generate` takes for an argument that is left out."""


@dataclass(frozen=True)
class Generation:
    """What `Pipeline.generate` made; image i of prompt p stands at p * num_images + i.

    Attributes:
        images: RGB.
        latents: [N, C, h, w], final, scaled as the denoiser sees them, float32 on the CPU.
        settings: one dict an image, with everything needed to make it again and no path.
    """

    images: list[Image.Image]
    latents: Tensor
    settings: list[dict[str, Any]]

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures as 0001.png, 0002.png ..., each with its settings in it, as `ldm generate` does.

        Raises:
            UserError: one of the files exists, or the disk is full or not writable.
        """
        paths = [Path(folder) / f"{number:04d}.png" for number in range(1, len(self.images) + 1)]
        for path in paths:
            if path.exists():
                raise UserError(f"{path} exists already", "choose another folder or move it away")
        for path, image, settings in zip(paths, self.images, self.settings, strict=True):
            write_png(path, image, settings)
        return paths


def latents_hash(latents: Tensor) -> str:
    """SHA-256 of latents of any shape, as float32 in row-major order, 64 hex digits."""
    return hashlib.sha256(latents.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def program_settings(dtype: torch.dtype, engine: Any = None) -> dict[str, Any]:
    """What made a picture: the engine, the number format, and the versions of the programs.

    Args:
        engine: what stood in for the denoiser, by its `name`; None for torch.
    """
    programs = ("diffusers", "transformers", *([engine.name] if engine else []))
    return {
        "engine": engine.name if engine else "torch",
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {"torch": str(torch.__version__)} | {name: version(name) for name in programs},
        "ldm_version": __version__,
    }


def complete_request(
    defaults: Defaults, *, multiple: int, latents: Tensor | None = None, **given: Any
) -> Request:
    """A request in which every None is filled in from the defaults, and the size fits the model.

    Args:
        multiple: height and width are rounded to multiples of it, in pixels.
        latents: initial noise [N, C, h, w]; it sets the size where none is given.
        given: fields of `Request`, None for what the user left open; what is not named is as `LEFT_OUT` has it.

    Raises:
        UserError: a value is out of range, or the scheduler is unknown.

    Warns:
        LdmWarning: a size is rounded.
    """
    given = {**LEFT_OUT, **given}
    for axis, name in enumerate(("height", "width"), start=2):
        if given[name] is None and latents is not None:
            given[name] = latents.shape[axis] * multiple
    values = {key: getattr(defaults, key) if value is None else value for key, value in given.items()}
    values["guidance_interval"] = tuple(map(float, values["guidance_interval"]))
    for name in ("height", "width"):
        values[name] = _round_size(name, values[name], multiple)
    _check_ranges(values)
    return Request(**values)


def _round_size(name: str, size: int, multiple: int) -> int:
    if size < 1:
        raise UserError(f"{name} is {size}", "it must be at least 1 pixel")
    rounded = max(1, math.floor(size / multiple + 0.5)) * multiple
    if rounded != size:
        message = f"{name} {size} is rounded to {rounded}: this model makes multiples of {multiple} pixels"
        warn(message)
    return rounded


def _check_ranges(values: dict[str, Any]) -> None:
    if values["scheduler"] not in SCHEDULERS:
        raise unknown_name("scheduler", values["scheduler"], SCHEDULERS)
    if values["num_inference_steps"] < 1:
        raise UserError(f"num_inference_steps is {values['num_inference_steps']}", "it must be at least 1")
    if not 0 <= values["guidance_scale"] < math.inf:
        raise UserError(f"guidance_scale is {values['guidance_scale']}", "it must be a number of at least 0")
    if not 1 <= values["max_prompt_chunks"] <= MAX_PROMPT_CHUNKS:
        raise UserError(
            f"max_prompt_chunks is {values['max_prompt_chunks']}", f"it must be 1 to {MAX_PROMPT_CHUNKS}"
        )
    if not 0 <= values["guidance_rescale"] <= 1:
        raise UserError(f"guidance_rescale is {values['guidance_rescale']}", "it must be 0 to 1")
    check_interval(values["guidance_interval"])
    if values["deep_features_every"] < 1:
        raise UserError(f"deep_features_every is {values['deep_features_every']}", "it must be at least 1")


def list_rows(
    prompts: Sequence[str], *, seed: int, seeds: Sequence[int] | None, num_images: int, batch_size: int
) -> list[tuple[str, int]]:
    """The pictures of a call, a row (prompt, seed) each: `num_images` of the first prompt, then those of the next.

    Args:
        seed: of the first picture of every prompt, whose i-th has seed + i.
        seeds: in place of `seed`, one for each row.

    Raises:
        UserError: naming the value that is out of range.
    """
    if not prompts:
        raise UserError("no prompt", "give at least one; an empty one is allowed")
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}", "it must be at least 1")
    drawn = [prompt for prompt in prompts for _ in range(num_images)]
    if seeds is not None:
        return list(zip(drawn, _checked_seeds(seeds, seed, len(drawn)), strict=True))
    if seed < 0 or seed + num_images - 1 > LARGEST_SEED:
        raise UserError(f"seed is {seed}", f"seed and seed + num_images - 1 must be 0 to {LARGEST_SEED}")
    return [(prompt, seed + row % num_images) for row, prompt in enumerate(drawn)]


def _checked_seeds(seeds: Sequence[int], seed: int, num_pictures: int) -> list[int]:
    """Seeds as plain whole numbers: a picture's settings are JSON."""
    if seed:
        raise UserError(f"seed is {seed} and seeds are given too", "give one of the two")
    if len(seeds) != num_pictures:
        raise UserError(f"{len(seeds)} seeds for {num_pictures} pictures", "give one seed for each picture")
    if wrong := [each for each in seeds if not 0 <= each <= LARGEST_SEED]:
        raise UserError(f"a seed is {wrong[0]}", f"it must be 0 to {LARGEST_SEED}")
    return list(map(index, seeds))


def batch_rows(num_chunks: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut rows into batches of at most `batch_size` that share one count of prompt chunks, by their first row.

    Rows of different counts never meet: the shorter one would have to be padded, which changes its picture.

    Args:
        num_chunks: of each row.
    """
    alike: dict[int, list[int]] = {}
    for row, count in enumerate(num_chunks):
        alike.setdefault(count, []).append(row)
    return [rows[i : i + batch_size] for rows in alike.values() for i in range(0, len(rows), batch_size)]


def count_on(on_step: OnStep | None, index: int, num_batches: int) -> OnStep | None:
    """The callback for batch `index` of several: it counts the steps of all."""
    if on_step is None:
        return None

    def report(done: int, total: int, step: Step, latents: Tensor) -> None:
        on_step(index * total + done, num_batches * total, step, latents)

    return report


def warn_unused(prompts: Sequence[str], request: Request, left_out: Callable[[str, int], str]) -> None:
    """Say what of the texts is not used; for the caller of `generate`.

    Args:
        left_out: the words of a text beyond a number of chunks.
    """
    texts, num_chunks = dict.fromkeys([*prompts, request.negative_prompt]), request.max_prompt_chunks
    for words in filter(None, (left_out(text, num_chunks) for text in texts)):
        message = f"the prompt is too long for this model, left out: {words!r}"
        warn(message)
    if request.negative_prompt and request.guidance_scale <= 1:
        message = (
            f"the negative prompt is not used with guidance_scale {request.guidance_scale:g}, only above 1"
        )
        warn(message)


def check_latents(latents: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Check that the initial noise given fits the pictures asked for.

    Raises:
        UserError: its shape is another one.
    """
    if tuple(latents.shape) != shape:
        raise UserError(f"latents have shape {list(latents.shape)}", f"here it must be {list(shape)}")


def check_text_to_image(model_id: str, denoiser: UNetDenoiser) -> None:
    """Refuse a model that needs more than a prompt.

    Raises:
        UserError: its UNet takes images, class labels or SDXL's time ids.
    """
    if denoiser.needs_more_than_text:
        raise UserError(
            f"{model_id} is not a text-to-image model of Stable Diffusion 1 or 2: its UNet takes "
            f"{denoiser.input_channels} channels for latents of {denoiser.latent_channels}, class labels or time ids",
            "use another model",
        )


def check_finite(latents: Tensor, scheduler: str, num_steps: int) -> None:
    """Check what sampling came to.

    Raises:
        UserError: the latents hold NaN or an infinity.
    """
    if not latents.isfinite().all():
        raise UserError(
            f"sampling with {scheduler!r} and {num_steps} steps gave NaN or infinite latents",
            "use more steps, another scheduler, or dtype float32",
        )
