"""Prompts through a pipeline, in batches that the memory can hold, each picture handed out as it is made."""

import io
import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.errors import UserError, warn
from ldm.generation.pictures import Picture, Target
from ldm.generation.prompts import Prompt
from ldm.io.files import write_bytes
from ldm.io.images import image_grid, open_image
from ldm.models.devices import free_cached_memory, is_out_of_memory
from ldm.pipeline.engine_choice import Work
from ldm.pipeline.record import write_png
from ldm.pipeline.settings import Generation

if TYPE_CHECKING:
    from ldm.models.loading.folder import Defaults
    from ldm.pipeline.pipeline import OnStep, Pipeline

OnProgress = Callable[[int, int], None]
"""Called after every sampling step with (steps done, steps in all), counted over all batches."""


@dataclass(frozen=True)
class PictureBatch:
    """Pictures that one call of `Pipeline.generate` makes, each with its own prompt and seed.

    Attributes:
        settings: the other arguments of the call.
    """

    pictures: tuple[Picture, ...]
    settings: dict[str, Any]

    @property
    def prompts(self) -> list[str]:
        return [picture.prompt.prompt for picture in self.pictures]

    @property
    def seeds(self) -> list[int]:
        return [picture.seed for picture in self.pictures]


def plan_batches(pictures: Sequence[Picture], batch_size: int) -> list[PictureBatch]:
    """Cut the pictures into batches of at most `batch_size`, those of one batch with the same settings.

    The cut depends on the pictures alone, so it is the same however many processes share the work.
    """
    alike: dict[tuple[tuple[str, Any], ...], list[Picture]] = {}
    for picture in pictures:
        settings = picture.prompt.model_dump(exclude={"prompt", "seed", "num_images"}, exclude_none=True)
        alike.setdefault(tuple(sorted(settings.items())), []).append(picture)
    return [
        PictureBatch(tuple(same[start : start + batch_size]), dict(settings))
        for settings, same in alike.items()
        for start in range(0, len(same), batch_size)
    ]


def work_of(pipeline: "Pipeline", pictures: Sequence[Picture]) -> Work:
    """What the denoiser will be given for some pictures; their size is taken to be that of the first."""
    defaults, first = pipeline.defaults, pictures[0].prompt
    num_rows = sum(_rows_of(picture.prompt, defaults) for picture in pictures)
    reuses = any((picture.prompt.deep_features_every or 1) > 1 for picture in pictures)
    sides = (first.height or defaults.height, first.width or defaults.width)
    height, width = (max(1, side // pipeline.autoencoder.pixels_per_latent) for side in sides)
    return Work(round(num_rows), height, width, pipeline.text_encoder.context_length, reuses)


def _rows_of(prompt: Prompt, defaults: "Defaults") -> float:
    """Rows that the denoiser computes for a picture, as if whole: noise levels count as all steps."""
    scale = defaults.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale
    start, end = prompt.guidance_interval or defaults.guidance_interval
    guided = (end - start if start < end else 1.0) if scale > 1 else 0.0
    num_steps = prompt.num_inference_steps or defaults.num_inference_steps
    return num_steps * (1 + guided) / (prompt.deep_features_every or 1)


def make_batches(
    pipeline: "Pipeline",
    batches: Sequence[PictureBatch],
    *,
    batch_size: int,
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[tuple[Picture, Image.Image, dict[str, Any]]]:
    """Make the pictures, batch after batch; yields each with its image and its settings for `write_png`.

    Raises:
        UserError: a setting does not fit the model, or the memory does not hold one picture.

    Warns:
        LdmWarning: the memory does not hold `batch_size` pictures, so fewer are made at once.
    """
    default = pipeline.defaults.num_inference_steps
    num_steps = [batch.settings.get("num_inference_steps", default) for batch in batches]
    on_progress(0, sum(num_steps))
    for index, batch in enumerate(batches):
        report = _counting(on_progress, sum(num_steps[:index]), num_steps[index], sum(num_steps))
        made, batch_size = _make_in_memory(pipeline, batch, batch_size, report)
        yield from zip(batch.pictures, made.images, made.settings, strict=True)


def _make_in_memory(
    pipeline: "Pipeline", batch: PictureBatch, batch_size: int, on_step: "OnStep"
) -> tuple[Generation, int]:
    """Make a batch, in halves as long as the memory does not hold it; with it, how many pictures it held."""
    while True:
        try:
            return (
                pipeline.generate(
                    batch.prompts,
                    seeds=batch.seeds,
                    batch_size=batch_size,
                    on_step=on_step,
                    **batch.settings,
                ),
                batch_size,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        at_once = min(batch_size, len(batch.pictures))
        if at_once == 1:
            raise UserError("the memory does not hold one picture", "try --low-memory or a smaller size")
        free_cached_memory()  # what the failed try held is free only now that its error is gone
        batch_size = at_once // 2
        said = f"the memory does not hold {at_once} pictures at once, going on with {batch_size}"
        warn(said)


def _counting(on_progress: OnProgress, before: int, steps: int, in_all: int) -> "OnStep":
    """The pipeline's callback for one batch; a sampler may make a step more or less than it was asked for."""

    def on_step(done: int, total: int, step: object, latents: object) -> None:
        on_progress(before + done * steps // total, in_all)

    return on_step


def write_pictures(
    pipeline: "Pipeline",
    batches: Sequence[PictureBatch],
    target: Target,
    *,
    batch_size: int,
    finished: Set[int] = frozenset(),
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[Path]:
    """Make the pictures and write each as soon as its batch is done; yields the paths.

    A batch of which a part is finished is made as a whole: the rest of it is then what it would have been, to the bit.

    Args:
        finished: the numbers of pictures that stay as they are.

    Raises:
        UserError: a setting does not fit the model, a file exists, or the disk is full or not writable.
    """
    wanted = [batch for batch in batches if any(picture.number not in finished for picture in batch.pictures)]
    for picture, image, settings in make_batches(
        pipeline, wanted, batch_size=batch_size, on_progress=on_progress
    ):
        if picture.number not in finished:
            path = target.folder / picture.name
            write_png(path, image, settings, overwrite=target.overwrite)
            yield path


def write_grid(pictures: Sequence[Picture], target: Target) -> Path:
    """Write the pictures, once they all are on the disk, in about as many rows as columns; returns the path.

    Raises:
        UserError: a picture is not there, or the disk is full or not writable.
    """
    images = [open_image(target.folder / picture.name) for picture in pictures]
    buffer = io.BytesIO()
    image_grid(images, num_columns=math.isqrt(len(images) - 1) + 1).save(buffer, "PNG")
    write_bytes(target.grid_path, buffer.getvalue())
    return target.grid_path
