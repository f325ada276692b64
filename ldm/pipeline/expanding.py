"""Outpainting: an image is placed on a larger canvas, and a mask says what of it is new.

The task is then inpainting. The mask that the sampler is given reaches a little into the image, so that the new area
fits; the pixels of the image itself stay as they are. A canvas larger than the images that the model makes is filled
window by window.

Axis letters: H W pixels of the canvas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ldm.diffusion.windows import Window
from ldm.errors import UserError
from ldm.models.expansion import Expansion, parse_expansion
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.input_images import InputImage, Placement


def expanded_inputs(
    inputs: Mapping[str, InputImage], settings: GenerationSettings
) -> Mapping[str, InputImage]:
    """The images given for an image, on the canvas that the settings ask for; a mask is added.

    Raises:
        UserError: an expansion is asked for without an image.
    """
    expansion = parse_expansion(settings.expand)
    if expansion == Expansion():
        return inputs
    if "image" not in inputs:
        raise UserError(
            f"expand is {settings.expand!r} without an image", "add the image to enlarge: --image FILE"
        )
    placement = Placement(expansion, settings.expand_fill, settings.expand_overlap)
    image = inputs["image"]
    mask = inputs.get("mask") or InputImage(image.name, "blank", image.record)
    return {
        **inputs,
        "image": replace(image, placement=placement),
        "mask": replace(mask, placement=placement),
    }


def plan_windows(new: NDArray[np.bool_], height: int, width: int, multiple: int) -> list[Window]:
    """Windows that cover what is new, each at least half over what is there already or was made before it.

    Args:
        new: [H, W], true where the canvas is new; the sides are multiples of `multiple`.
        height, width: of a window, multiples too; a canvas that is smaller has smaller ones.
    """
    tall, wide = min(height, new.shape[0]), min(width, new.shape[1])
    grid = [
        Window(top, left, tall, wide)
        for top in _positions(new.shape[0], tall, multiple)
        for left in _positions(new.shape[1], wide, multiple)
    ]
    left_over = new.copy()
    windows: list[Window] = []
    for window in sorted(grid, key=lambda each: _distance(each, new)):
        part = left_over[window.rows, window.columns]
        if part.any():
            windows.append(window)
            part[:] = False
    return windows


def _positions(length: int, window: int, multiple: int) -> Sequence[int]:
    """Where windows begin: half a window apart, the last one at the end."""
    stride = max(window // 2 // multiple, 1) * multiple
    return [*range(0, length - window, stride), length - window]


def _distance(window: Window, new: NDArray[np.bool_]) -> float:
    """How far a window's centre is from the box around what is not new."""
    rows, columns = np.nonzero(~new)
    centre = (window.top + window.height / 2, window.left + window.width / 2)
    if not len(rows):
        return float(np.hypot(*centre))
    outside = [
        max(each.min() - at, at - each.max() - 1, 0.0)
        for each, at in zip((rows, columns), centre, strict=True)
    ]
    return float(np.hypot(*outside))
