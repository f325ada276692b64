"""Masks for training to inpaint, drawn from a sample's key: strokes, boxes and ellipses, or everything.

The mixture follows what Stable Diffusion's inpainting models report: synthetic masks, and in a quarter of the samples
everything is masked, so that the model can still make whole images.
"""

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm import noise
from ldm.data.sample import SampleDraw

VERSION = f"1, Pillow {PIL.__version__}"
"""The number is increased when a key would give another mask. Cached masked images depend on it, and on Pillow, which
draws the shapes."""

SHARE_MASKED_WHOLE = 0.25
MOST_SHAPES = 4
LARGEST_SIDE = 0.7
"""The largest side of a box or an ellipse, as a fraction of the image's side."""
MOST_POINTS = 6
WIDEST_STROKE = 0.25


def draw_mask(draw: SampleDraw, size: tuple[int, int]) -> dict[str, Tensor]:
    """`mask` [1, H, W] for a sample, 1 where it is masked: everywhere, or in one to four shapes.

    Args:
        size: H, W in pixels.
    """
    if noise.uniform(*draw, "mask", "whole") < SHARE_MASKED_WHOLE:
        return {"mask": torch.ones(1, *size)}
    height, width = size
    image = Image.new("L", (width, height), 0)
    canvas = ImageDraw.Draw(image)
    for shape in range(1 + noise.choice(MOST_SHAPES, *draw, "mask", "shapes")):
        key = (*draw, "mask", shape)
        (_box, _ellipse, _stroke)[noise.choice(3, *key, "kind")](canvas, key, size)
    return {"mask": torch.from_numpy((np.asarray(image) > 0).astype(np.float32))[None]}


def _extent(key: SampleDraw, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a box within the image."""
    height, width = size
    tall, wide = (
        max(1.0, LARGEST_SIDE * noise.uniform(*key, name) * side)
        for name, side in (("h", height), ("w", width))
    )
    top, left = noise.uniform(*key, "top") * (height - tall), noise.uniform(*key, "left") * (width - wide)
    return left, top, left + (wide - 1), top + (tall - 1)


def _box(canvas: ImageDraw.ImageDraw, key: SampleDraw, size: tuple[int, int]) -> None:
    canvas.rectangle(_extent(key, size), fill=255)


def _ellipse(canvas: ImageDraw.ImageDraw, key: SampleDraw, size: tuple[int, int]) -> None:
    canvas.ellipse(_extent(key, size), fill=255)


def _stroke(canvas: ImageDraw.ImageDraw, key: SampleDraw, size: tuple[int, int]) -> None:
    """A polyline with round corners and ends."""
    height, width = size
    thickness = max(1, round((0.02 + (WIDEST_STROKE - 0.02) * noise.uniform(*key, "width")) * min(size)))
    count = 2 + noise.choice(MOST_POINTS - 1, *key, "points")
    points = [
        (noise.uniform(*key, index, "x") * width, noise.uniform(*key, index, "y") * height)
        for index in range(count)
    ]
    canvas.line(points, fill=255, width=thickness)
    radius = thickness / 2
    for x, y in points:
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
