"""The size that an image is trained at, and its crops: aspect-ratio buckets within a pixel budget.

Sizes are (height, width) in pixels. Everything is a pure function of the image's size, the settings, the seed and the
sample id, so cache keys are stable and all processes agree.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from pydantic import Field, model_validator

from ldm import noise
from ldm.config import Settings
from ldm.errors import UserError

Size = tuple[int, int]

_MAX_ASPECT = 2.0
_SMALLEST_SHARE = 4
"""Without upscaling, images that would be trained at less than 1/4 of the pixel budget (half its side) are refused."""


class BucketSettings(Settings):
    """The sizes that images are trained at, and the number of crops."""

    buckets: bool = Field(
        False,
        description="keep each image's shape: height * width is then a budget of pixels; else one size for all",
    )
    max_aspect: float = Field(
        _MAX_ASPECT,
        ge=1,
        le=16,
        description="with buckets: longest side by shortest; what is longer is cropped",
    )
    upscale: bool = Field(False, description="enlarge images that are smaller than their size; else never")
    crop_variants: int = Field(
        1, ge=1, le=64, description="fixed crops of an image, drawn anew each epoch; 1 is the middle alone"
    )

    @model_validator(mode="after")
    def _check_max_aspect(self) -> Self:
        if not self.buckets and self.max_aspect != _MAX_ASPECT:
            raise ValueError(
                f"max_aspect = {self.max_aspect} has no effect without buckets: set buckets=true"
            )
        return self


@dataclass(frozen=True)
class Placement:
    """How an image is brought to its size: scaled to cover it, then cropped.

    Attributes:
        height: of the result, in pixels; so is `width`.
        scaled_height: of the whole scaled image; so is `scaled_width`. One of the two sides fits exactly.
        crops: (top, left) of each crop in the scaled image. Crop 0 is the center, to the nearest pixel.
    """

    height: int
    width: int
    scaled_height: int
    scaled_width: int
    crops: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def slack(self) -> tuple[int, int]:
        """How far a crop can move down and to the right, in pixels."""
        return self.scaled_height - self.height, self.scaled_width - self.width


def place(
    image_width: int,
    image_height: int,
    *,
    height: int,
    width: int,
    multiple: int,
    settings: BucketSettings,
    seed: int,
    sample_id: str,
) -> Placement | str:
    """The placement of an image, or one line that says why it cannot be used and how to fix that.

    Args:
        image_width: of the upright image, in pixels; `image_height` likewise.
        height: the size of all images; with buckets, `height * width` is the budget.
        multiple: with buckets, sides are multiples of it.
        seed: with the sample id, determines all crops but the first.

    Raises:
        UserError: with buckets, the budget is smaller than `multiple` squared.
    """
    image = (image_height, image_width)
    if settings.buckets:
        size = _choose_bucket(image, height * width, multiple, settings)
    else:
        size = (height, width) if settings.upscale or _covers(image, (height, width)) else None
    if size is None:
        return _too_small(image, (height, width), settings)
    scaled = scaled_size(image, size)
    crops = _crops(scaled[0] - size[0], scaled[1] - size[1], settings.crop_variants, seed, sample_id)
    return Placement(*size, *scaled, crops)


def draw_crop(placement: Placement, *, seed: int, epoch: int, sample_id: str) -> int:
    """The crop of a sample in an epoch: an index into `placement.crops`, all equally likely."""
    return noise.choice(len(placement.crops), seed, epoch, sample_id, "crop")


def scaled_size(image: Size, size: Size) -> Size:
    """(height, width) of an image scaled to just cover `size`, keeping its aspect ratio; halves round up."""
    (image_height, image_width), (height, width) = image, size
    if height * image_width >= width * image_height:
        return height, (2 * image_width * height + image_height) // (2 * image_height)
    return (2 * image_height * width + image_width) // (2 * image_width), width


@lru_cache(maxsize=64)
def bucket_sizes(budget: int, multiple: int, max_aspect: float) -> tuple[Size, ...]:
    """All buckets within a pixel budget, tall ones first.

    The sides are multiples of `multiple`, the area is at most the budget, the aspect ratio at most `max_aspect`, and no
    bucket could grow in either direction.

    Raises:
        UserError: no such size fits the budget.
    """
    sizes = _largest_sizes(budget, multiple, max_aspect, budget, budget)
    if not sizes:
        raise UserError(
            f"a budget of {budget} pixels is too small for image sides that are multiples of {multiple}",
            f"make height and width at least {multiple}",
        )
    return sizes


@lru_cache(maxsize=4096)
def _largest_sizes(
    budget: int, multiple: int, max_aspect: float, max_height: int, max_width: int
) -> tuple[Size, ...]:
    """The sizes within these limits that could not grow in either direction, tall ones first."""
    fronts: list[Size] = []
    for height, width in _tallest_by_width(budget, multiple, max_aspect, max_height, max_width):
        while fronts and fronts[-1][0] <= height:
            fronts.pop()
        fronts.append((height, width))
    return tuple(fronts)


def _tallest_by_width(
    budget: int, multiple: int, max_aspect: float, max_height: int, max_width: int
) -> Iterator[Size]:
    """The tallest size within the limits for each width, narrow ones first."""
    widest = min(max_width, math.isqrt(math.ceil(budget * max_aspect)))
    for width in range(multiple, widest + 1, multiple):
        limit = min(budget // width, max_height, math.floor(max_aspect * width))
        height = limit // multiple * multiple
        if height and width <= max_aspect * height:
            yield height, width


def _choose_bucket(image: Size, budget: int, multiple: int, settings: BucketSettings) -> Size | None:
    """The bucket with the nearest aspect ratio; for an image too small for it, the nearest of the sizes it covers."""
    size = _nearest_shape(image, bucket_sizes(budget, multiple, settings.max_aspect))
    if settings.upscale or _covers(image, size):
        return size
    fitting = (side // multiple * multiple for side in image)
    smaller = _largest_sizes(budget, multiple, settings.max_aspect, *fitting)
    enough = tuple(size for size in smaller if _SMALLEST_SHARE * size[0] * size[1] >= budget)
    return _nearest_shape(image, enough) if enough else None


def _nearest_shape(image: Size, sizes: tuple[Size, ...]) -> Size:
    """The size whose log aspect ratio is nearest; of two that are equally near, the larger."""

    def distance(size: Size) -> tuple[float, int]:
        return abs(math.log(size[1] * image[0]) - math.log(size[0] * image[1])), -size[0] * size[1]

    return min(sizes, key=distance)


def _covers(image: Size, size: Size) -> bool:
    return image[0] >= size[0] and image[1] >= size[1]


def _too_small(image: Size, size: Size, settings: BucketSettings) -> str:
    """Why an image is refused, with sizes as width x height."""
    run, hint = f"{size[1]} x {size[0]}", "use a larger image or a smaller size, or set data.upscale=true"
    what = f"too few for a quarter of the budget {run}" if settings.buckets else f"smaller than {run}"
    return f"{image[1]} x {image[0]} pixels, {what}: {hint}"


def _crops(down: int, right: int, num_crops: int, seed: int, sample_id: str) -> tuple[tuple[int, int], ...]:
    """The center, then crops drawn uniformly from all positions."""

    def draw(slack: int, number: int, side: str) -> int:
        return noise.choice(slack + 1, seed, sample_id, number, side)

    drawn = ((draw(down, k, "crop top"), draw(right, k, "crop left")) for k in range(1, num_crops))
    return (down // 2, right // 2), *drawn
