"""An enlarged image is made window by window: each is inpainted beside what is there already.

Axis letters: B batch, C latent channels, h w latent size of the canvas.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm.diffusion.windows import Window
from ldm.errors import UserError
from ldm.models.expansion import Expansion
from ldm.models.generation_settings import GenerationSettings
from ldm.noise import image_generators, key_to_seed
from ldm.pipeline.batch_sampling import BatchSampler, initial_noise, latent_shape
from ldm.pipeline.batches import ImageRequest, PlannedBatch
from ldm.pipeline.compositing import completed_image
from ldm.pipeline.expanding import plan_windows
from ldm.pipeline.input_images import (
    Placement,
    canvas_size,
    fitted,
    mask_values,
    memory_image,
)
from ldm.types import Step

OnWindowStep = Callable[[Step, Tensor], None]


def made_at_once(
    settings: GenerationSettings, defaults: GenerationSettings, multiple: int
) -> tuple[int, int]:
    """Height and width of what the denoiser makes: of the image, or of a window of one that is enlarged.

    Args:
        settings: none of them left open.
        defaults: the model's, whose size is that of a window.
        multiple: pixels per latent.
    """
    if not settings.expand:
        return settings.height, settings.width
    own = defaults.model_defaults()
    tall, wide = canvas_size(settings.height, settings.width, multiple)
    largest = [max(own[side] // multiple, 1) * multiple for side in ("height", "width")]
    return min(tall, largest[0]), min(wide, largest[1])


def windows_of(
    image: ImageRequest, settings: GenerationSettings, defaults: GenerationSettings, multiple: int
) -> tuple[Window, ...]:
    """The windows of an image that is enlarged beyond what the model makes at once; none for other images.

    Raises:
        UserError: a control image, which belongs to the whole image, controls one that is made in windows.
    """
    at_once = made_at_once(settings, defaults, multiple)
    if not settings.expand or at_once == canvas_size(settings.height, settings.width, multiple):
        return ()
    if any(control.sets_size for control in image.controls):
        size = f"{settings.width} x {settings.height}"
        raise UserError(
            f"an image that is enlarged to {size} pixels is made in windows, which cannot be controlled",
            "leave out the control image, or add fewer pixels at once",
        )
    new = new_area(image, settings.height, settings.width, multiple)
    return tuple(plan_windows(new, *at_once, multiple))


def outpaint(
    sampler: BatchSampler,
    batch: PlannedBatch,
    noise: Tensor | None = None,
    on_step: Callable[[int], OnWindowStep | None] = lambda window: None,
) -> tuple[Tensor, list[Image.Image], bool]:
    """The latents [B, C, h, w] and the images of a batch with windows, and whether one was decoded in tiles.

    Args:
        noise: [B, C, h, w] of the whole canvas, of which each window has its part; by default drawn from the seeds.
        on_step: for the index of a window, what to call after each of its steps.
    """
    settings, multiple = batch.settings, sampler.parts.autoencoder.pixels_per_latent
    shape = latent_shape(sampler.parts.autoencoder, settings)
    noise = initial_noise(image_generators(batch.seeds), settings, shape) if noise is None else noise
    canvases = [canvas_pixels(image, settings.height, settings.width, multiple) for image in batch.images]
    masks = [new_area(image, settings.height, settings.width, multiple) for image in batch.images]
    latents, in_tiles = torch.zeros(len(noise), *shape), False
    for index, window in enumerate(batch.windows):
        part = window_batch(batch, canvases, masks, window, index)
        small = window.divided(multiple)
        here = (..., small.rows, small.columns)
        final = sampler.sample(part, noise[here], on_step(index))
        decoded, tiled = sampler.decode(final)
        for row, image in enumerate(decoded):
            made = completed_image(part.images[row], part, image)
            canvases[row][window.rows, window.columns] = np.asarray(made)
            masks[row][window.rows, window.columns] = False
        latents[here], in_tiles = final.cpu(), in_tiles or tiled
    size = (0, 0, settings.width, settings.height)
    return latents, [Image.fromarray(canvas).crop(size) for canvas in canvases], in_tiles


def canvas_pixels(image: ImageRequest, height: int, width: int, multiple: int) -> NDArray[np.uint8]:
    """The canvas of an image before anything new is made, its last row and column repeated up to multiples."""
    pixels = np.asarray(fitted(image.inputs["image"].open(), height, width))
    tall, wide = canvas_size(height, width, multiple)
    return np.pad(pixels, ((0, tall - height), (0, wide - width), (0, 0)), mode="edge")


def new_area(image: ImageRequest, height: int, width: int, multiple: int) -> NDArray[np.bool_]:
    """Which pixels of that canvas are new."""
    new: NDArray[np.bool_] = mask_values(image.inputs["mask"].open(), height, width, multiple)[0].numpy() > 0
    return new


def window_batch(
    batch: PlannedBatch,
    canvases: list[NDArray[np.uint8]],
    masks: list[NDArray[np.bool_]],
    window: Window,
    index: int,
) -> PlannedBatch:
    """The batch that makes one window; noise that a sampler adds at each step differs between windows."""
    images = []
    for image, canvas, mask in zip(batch.images, canvases, masks, strict=True):
        placement = image.inputs["mask"].placement
        parts = (canvas[window.rows, window.columns], mask[window.rows, window.columns])
        inputs = {"image": memory_image(Image.fromarray(parts[0].copy()), "photo")}
        inputs["mask"] = replace(
            memory_image(Image.fromarray(parts[1].astype(np.uint8) * 255), "mask"),
            placement=Placement(Expansion(), overlap=placement.overlap) if placement else None,
        )
        seed = key_to_seed("window", image.seed, index) if index else image.seed
        images.append(replace(image, inputs=inputs, seed=seed))
    size = {"height": window.height, "width": window.width}
    return replace(batch, images=images, settings=batch.settings.model_copy(update=size), windows=())
