"""The settings of one call: completed from the model's defaults, and checked; and the images that come of it."""

import base64
import hashlib
import html
import io
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError, warn
from ldm.io.files import write_new
from ldm.io.image_metadata import ImageFormat
from ldm.io.image_writing import SUFFIXES
from ldm.models.control.hints import REFERENCE
from ldm.models.generation_settings import PRESETS, GenerationSettings, preset_settings, settings_of
from ldm.models.setting_checks import check_text
from ldm.models.setting_limits import LARGEST_SEED
from ldm.models.settings_reading import parse_settings
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.batches import ImageRequest, Kind, Prompt
from ldm.pipeline.control_images import list_references, pair_controls
from ldm.pipeline.file_names import image_file_name
from ldm.pipeline.input_images import pair_inputs
from ldm.pipeline.record import ImageRecord, encode_with_record
from ldm.tasks import TASKS, Task, find_task
from ldm.types import Step
from ldm.version import __version__

__all__ = [
    "LARGEST_SEED",
    "PRESETS",
    "Generation",
    "GenerationSettings",
    "MadeImage",
    "OnStep",
    "latents_hash",
    "parse_settings",
    "preset_settings",
]

CONTROL = "control"
"""What a setting with an effect on control images alone needs: `Setting.only_with`."""

_MOST_SHOWN, _LONGEST_TITLE = 64, 80

OnStep = Callable[[int, int, Step, Tensor], None]
"""Called after every sampling step with (steps done, steps in all, the step, latents [B, C, h, w])."""


@dataclass(frozen=True, repr=False)
class Generation:
    """What `Pipeline.generate` made; image i of prompt p is at p * num_images + i. A notebook shows the images.

    Attributes:
        images: RGB.
        latents: [N, C, h, w], final, scaled as the denoiser sees them, float32 on the CPU; a list of [C, h, w] if the
            images have different sizes.
        records: one an image, with everything needed to make it again.
    """

    images: list[Image.Image]
    latents: Tensor | list[Tensor]
    records: list[ImageRecord]

    def __repr__(self) -> str:
        """Such as `<Generation: 2 images of 64 x 64, 'a red apple' seed 7, ...>`."""
        number = len(self.images)
        kinds = list(dict.fromkeys(f"{image.width} x {image.height}" for image in self.images))
        size = kinds[0] if len(kinds) == 1 else "several sizes"
        first = f", {self._title(0)}" if self.records else ""
        more = ", ..." if number > 1 else ""
        return f"<Generation: {number} image{'' if number == 1 else 's'} of {size}{first}{more}>"

    def _repr_html_(self) -> str:
        """The images as a notebook shows them, with prompt and seed below each."""
        shown = (
            f'<figure style="margin:4px"><img src="data:image/png;base64,{_as_base64(image)}" '
            f'alt=""><figcaption>{html.escape(self._title(index))}</figcaption></figure>'
            for index, image in enumerate(self.images[:_MOST_SHOWN])
        )
        left = len(self.images) - _MOST_SHOWN
        more = f"<p>and {left} more</p>" if left > 0 else ""
        return f'<div style="display:flex;flex-wrap:wrap">{"".join(shown)}</div>{more}'

    def _title(self, index: int) -> str:
        record = self.records[index]
        prompt = (
            record.prompt if len(record.prompt) <= _LONGEST_TITLE else record.prompt[:_LONGEST_TITLE] + "..."
        )
        return repr(prompt) if record.seed is None else f"{prompt!r} seed {record.seed}"

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The records as flat mappings, as `ldm.pipeline.record.read_settings` returns them."""
        return [record.to_json() for record in self.records]

    def save(
        self, folder: str | os.PathLike[str], file_format: ImageFormat = "png", quality: int | None = None
    ) -> list[Path]:
        """Write the images as `ldm generate` does, with the same names: `0001-a-red-apple-s7.png`, ...

        Args:
            quality: of JPEG and WebP, 1 to 100; by default 95, and no loss for WebP.

        Raises:
            UserError: one of the files exists, or the disk is full or not writable.
        """
        paths = [
            Path(folder) / image_file_name(number, record.prompt, record.seed, SUFFIXES[file_format])
            for number, record in enumerate(self.records, start=1)
        ]
        for path in paths:
            if path.exists():
                raise UserError(f"{path} exists already", "choose another folder or move it away")
        for path, image, record in zip(paths, self.images, self.records, strict=True):
            write_new(path, encode_with_record(image, record, file_format, quality))
        return paths


def _as_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


@dataclass(frozen=True)
class MadeImage:
    """An image and where it comes from.

    Attributes:
        latents: [C, h, w], final, on the CPU.
    """

    request: ImageRequest
    image: Image.Image
    latents: Tensor
    record: ImageRecord


def read_prompts(prompts: Any, negative: Any, settings: GenerationSettings) -> list[Prompt]:
    """The prompts of a call, each with its settings.

    Args:
        prompts: a text, or several.
        negative: the negative prompt: a text for all, one for each prompt, or None for the one in `settings`.

    Raises:
        UserError: one is not text, or there are too many or too few.
    """
    texts = _texts("prompts", prompts)
    if negative is None or isinstance(negative, str):
        given = {} if negative is None else {"negative_prompt": negative}
        own = parse_settings(given, type(settings)).over(settings)
        return [Prompt(text, own) for text in texts]
    negatives = _texts("negative_prompt", negative)
    if len(negatives) != len(texts):
        counts = f"{len(negatives)} negative prompts for {len(texts)} prompts"
        raise UserError(counts, "give one for all, or one for each prompt")
    kind = type(settings)
    return [
        Prompt(text, parse_settings({"negative_prompt": each}, kind).over(settings))
        for text, each in zip(texts, negatives, strict=True)
    ]


def with_inputs(
    prompts: Sequence[Prompt], image: Any, mask: Any, control: Any, reference: Any
) -> list[Prompt]:
    """The prompts of a call with the images given beside them, as `Pipeline.generate` describes them.

    One prompt goes with all images, and one image with all prompts.

    Raises:
        UserError: as `pair_inputs`, `pair_controls` and `list_references`.
    """
    pairs = pair_inputs([prompt.prompt for prompt in prompts], image, mask)
    prompts = list(prompts) * len(pairs) if len(prompts) == 1 else prompts
    references = tuple(list_references(reference))
    controls = [each + references for each in pair_controls(control, len(pairs))]
    return [
        replace(prompt, inputs=inputs, controls=controlled)
        for prompt, (_, inputs), controlled in zip(prompts, pairs, controls, strict=True)
    ]


def _texts(name: str, given: Any) -> list[str]:
    if isinstance(given, str):
        return [check_text(given)]
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
        raise UserError(f"{name} is {_shown(given)}", "give a text or a list of texts")
    texts = list(given)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"one of {name} is {_shown(text)}", "give texts only")
        check_text(text)
    return texts


def check_call(seeds: Any, batch_size: Any, latents: Any, on_step: Any) -> None:
    """Check the types of the arguments of `Pipeline.generate` that are no settings.

    Raises:
        UserError: one is of the wrong type.
    """
    if seeds is not None and not (_is_row(seeds) and all(hasattr(seed, "__index__") for seed in seeds)):
        raise UserError(f"seeds is {_shown(seeds)}", "give a list of whole numbers, one for each image")
    if batch_size is not None and (not hasattr(batch_size, "__index__") or int(batch_size) < 1):
        raise UserError(f"batch_size is {_shown(batch_size)}", "give a whole number of at least 1")
    if latents is not None and not (isinstance(latents, Tensor) and latents.ndim == 4):
        raise UserError(f"latents is {_shown(latents)}", "give a tensor [N, C, h, w]")
    if on_step is not None and not callable(on_step):
        raise UserError(f"on_step is {_shown(on_step)}", "give a function")


def _is_row(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, str | bytes)


def _shown(value: Any) -> str:
    text = type(value).__name__ if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= _LONGEST_TITLE else f"{text[:_LONGEST_TITLE]}..."


def stacked(latents: list[Tensor]) -> Tensor | list[Tensor]:
    """Latents [C, h, w] of N images as [N, C, h, w]; as they are if the images have different sizes."""
    return torch.stack(latents) if len({each.shape for each in latents}) == 1 else latents


def latents_hash(latents: Tensor) -> str:
    """SHA-256 of latents of any shape, as float32 in row-major order, 64 hex digits."""
    return hashlib.sha256(latents.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def program_settings(dtype: torch.dtype, engine: Any = None) -> dict[str, Any]:
    """The part of a record that says what made the image: engine, number format, versions of the programs.

    Args:
        engine: what replaces the denoiser, by its `name`; None for torch.
    """
    programs = ("diffusers", "transformers", *([engine.name] if engine else []))
    return {
        "engine": engine.name if engine else "torch",
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {"torch": str(torch.__version__)} | {name: version(name) for name in programs},
        "ldm_version": __version__,
    }


def complete(
    settings: GenerationSettings,
    defaults: GenerationSettings,
    *,
    multiple: int,
    task: Task,
    latents: Tensor | None = None,
    given: Collection[str] = (),
) -> GenerationSettings:
    """Settings none of which is left open, and whose size fits the model.

    Args:
        defaults: the model's.
        multiple: height and width are rounded to multiples of it, in pixels; not those of an image that was given,
            which is padded and cut back.
        task: has a default strength.
        latents: initial noise [N, C, h, w]; it determines the size if none is given.
        given: what the images are made with besides the task's images, such as `control`.

    Warns:
        LdmWarning: a size is rounded.
    """
    kind = type(settings)
    sizes = {} if latents is None else {"height": latents.shape[2], "width": latents.shape[3]}
    values = kind().recorded(task.name, given)  # the settings' own defaults are the weakest layer
    if "strength" in values:
        values |= {"strength": task.start.strength}
    values |= defaults.given() | {name: size * multiple for name, size in sizes.items()} | settings.given()
    if not task.given and CONTROL not in given:
        values |= {name: _round_size(name, values[name], multiple) for name in ("height", "width")}
    return kind(**values)


def _round_size(name: str, size: int, multiple: int) -> int:
    rounded = max(1, math.floor(size / multiple + 0.5)) * multiple
    if rounded != size:
        warn(f"{name} {size} is rounded to {rounded}: this model makes multiples of {multiple} pixels")
    return rounded


def check_applicable(
    settings: GenerationSettings, task: Task, with_: Collection[str] = (), told: Collection[str] = ()
) -> None:
    """Refuse a setting that has no effect on the task, or on the model.

    Args:
        with_: what is given besides the task's images, such as `control`.
        told: what the model is told besides a prompt.

    Raises:
        UserError: the first one, with the tasks that it is for.
    """
    given, changed = settings.given(), settings.changed()
    for name, setting in settings_of(type(settings)):
        if name in changed and setting.told and setting.told not in told:
            what = f"{name} has no effect on this model, which is not told {setting.told}"
            raise UserError(what, f"leave {name} out: it is for models such as Stable Diffusion XL")
        if name in given and setting.only_with and setting.only_with not in with_:
            flag = setting.only_with
            raise UserError(f"{name} has no effect without --{flag}", f"add --{flag}, or leave {name} out")
        if name in given and setting.tasks and task.name not in setting.tasks:
            raise UserError(
                f"{name} has no effect on {task.name}, only on {', '.join(setting.tasks)}",
                f"{_way_to_use(setting.tasks, task)}leave {name} out",
            )


def _way_to_use(tasks: Iterable[str], task: Task) -> str:
    """What to do so that a setting of other tasks has an effect: give more images, or another model."""
    others = [find_task(name) for name in tasks]
    added = [sorted(set(one.given) - set(task.given)) for one in others if one.trained_as == task.trained_as]
    if flags := min(filter(None, added), key=len, default=[]):
        return f"add {' and '.join(f'--{each}' for each in flags)}, or "
    trained = dict.fromkeys(one.trained_as for one in others if one.trained_as != task.trained_as)
    return f"use a model trained for {' or '.join(trained)}, or " if trained else ""


def given_besides(kind: Kind) -> frozenset[str]:
    """What images of this kind are made with besides the task's images."""
    return frozenset({CONTROL} if any(name != REFERENCE for name, *_ in kind.controls) else ())


def check_guidance(
    asked: GenerationSettings,
    settings: GenerationSettings,
    *,
    has_guide: bool,
    engine: str = "torch",
    has_refiner: bool = False,
) -> None:
    """Check that what guidance needs is there.

    Args:
        asked: those that were given.
        settings: none of them left open.
        has_guide: whether there is a second model.
        engine: what runs the denoiser.
        has_refiner: whether another model finishes the sampling.

    Raises:
        UserError: autoguidance has no second model, or PAG an engine whose attention cannot be changed.

    Warns:
        LdmWarning: a setting of another guidance, a second model or a negative prompt has no effect.
    """
    if settings.guidance == "autoguidance" and has_refiner:
        what = "guidance is autoguidance, and nothing guides the refiner"
        raise UserError(what, "use another guidance, or leave out --refiner")
    if settings.guidance == "autoguidance" and not has_guide:
        raise UserError(
            "guidance is autoguidance without a second model", "name a weaker one with --guide-model"
        )
    if settings.guidance == "pag" and engine != "torch":
        raise UserError(
            f"guidance is pag, and the engine {engine} cannot change the attention inside the network",
            "use --engine torch, or another guidance",
        )
    if settings.guidance == "autoguidance" and settings.negative_prompt:
        warn("the negative prompt is not used with autoguidance")
    if has_guide and settings.guidance != "autoguidance":
        warn(f"the guide model is not used with guidance {settings.guidance}: set --guidance autoguidance")
    for name in asked.given():
        prefix = name.partition("_")[0]
        is_default = (
            getattr(asked, name) == type(asked).model_fields[name].default
        )  # as an image's record has it
        if prefix in ("apg", "pag") and settings.guidance != prefix and not is_default:
            warn(f"{name} has no effect with guidance {settings.guidance}")


def check_same_form(
    prompt: str, weights: Sequence[float], to_prompt: str, to_weights: Sequence[float]
) -> None:
    """Check that one prompt can be interpolated with another: AND must join equally many, with equal weights.

    Raises:
        UserError: it does not.
    """
    if tuple(weights) != tuple(to_weights):
        raise UserError(
            f"{prompt!r} and {to_prompt!r} do not join as many prompts with AND, or with other weights",
            "write both with the same number of AND and the same weights",
        )


def check_not_on_the_way(settings: GenerationSettings) -> None:
    """Refuse to interpolate noise that was given.

    Raises:
        UserError: `to_seed` is set.
    """
    if settings.to_seed >= 0:
        raise UserError(f"to_seed is {settings.to_seed} and latents are given too", "give one of the two")


def warn_unused(
    prompts: Iterable[str],
    settings: GenerationSettings,
    truncated_words: Callable[[str, int], str],
    *,
    embeds_guidance: bool = False,
) -> None:
    """Warn about the parts of the prompts that are not used.

    Args:
        truncated_words: the words of a text beyond a number of chunks.
        embeds_guidance: whether the denoiser is told the guidance scale.
    """
    shared = settings.to_prompt, settings.negative_prompt, settings.prompt_2, settings.negative_prompt_2
    for text in dict.fromkeys([*prompts, *shared]):
        if words := truncated_words(text, settings.max_prompt_chunks):
            warn(f"the prompt is too long for this model, left out: {words!r}")
    if settings.negative_prompt and embeds_guidance:
        warn("the negative prompt is not used by this model, which is told the guidance scale")
    elif settings.negative_prompt and settings.guidance_scale <= 1:
        scale = f"{settings.guidance_scale:g}"
        warn(f"the negative prompt is not used with guidance_scale {scale}, only above 1")


def check_latents(latents: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Check that given initial noise fits the images asked for.

    Raises:
        UserError: it has another shape.
    """
    if tuple(latents.shape) != shape:
        raise UserError(f"latents have shape {list(latents.shape)}", f"here it must be {list(shape)}")


def first_step(strength: float, num_inference_steps: int) -> int:
    """The sampling step to start at, so that about `strength` of all steps are run; above 0 at least one is."""
    kept = max(round(strength * num_inference_steps), 1 if strength > 0 else 0)
    return num_inference_steps - kept


def check_task_fits(model_id: str, task: str, denoiser: UNetDenoiser, *, has_time_ids: bool = False) -> None:
    """Refuse a model that needs more than its task and its family give it.

    Args:
        has_time_ids: whether the family tells its UNet sizes.

    Raises:
        UserError: its UNet takes other channels, class labels or time ids.
    """
    known = TASKS.get(task)
    wanted = (known.concat_channels(denoiser.latent_channels), known.num_class_labels) if known else None
    takes = (denoiser.concat_channels, denoiser.num_class_labels)
    if takes != wanted or denoiser.needs_more_than_images or denoiser.needs_time_ids > has_time_ids:
        trained = [each.name for each in TASKS.values() if each.trained_as == each.name]
        raise UserError(
            f"{model_id} is not a model that can be used here: its UNet takes {denoiser.input_channels} channels for "
            f"latents of {denoiser.latent_channels}, class labels or time ids",
            f"use a model of Stable Diffusion 1, 2 or XL for {', '.join(trained[:-1])} or {trained[-1]}",
        )


def check_finite(latents: Tensor, scheduler: str, num_steps: int) -> None:
    """Check the result of sampling.

    Raises:
        UserError: the latents contain NaN or infinity.
    """
    if not latents.isfinite().all():
        raise UserError(
            f"sampling with {scheduler!r} and {num_steps} steps gave NaN or infinite latents",
            "use more steps, another scheduler, or dtype float32",
        )
