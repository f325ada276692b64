"""Images to pixel values and masks to weights, in one fixed way that has a version number.

Axis letters: H W pixels, h w latent size.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.buckets import Placement, scaled_size
from ldm.data.sample import ImageKind
from ldm.errors import UserError
from ldm.io.images import WHITE, Color, image_to_tensor, resize_and_crop

TRANSFORM_VERSION = 1
"""Part of every cache key. Increased when the same image and placement would give different numbers, which a test
notices by a hash of the output."""

_SHAPE_TOLERANCE = 0.02


def transform_image(image: Image.Image, placement: Placement, crop: int = 0, flip: bool = False) -> Tensor:
    """Scale, crop and mirror an upright RGB image: pixel_values [3, H, W] in [-1, 1].

    Pillow's antialiased Lanczos filter scales and crops in one pass. Crop 0 is the exact center, if need be
    at half a pixel.

    Args:
        crop: index into `placement.crops`.
        flip: mirror left and right, after cropping.

    Raises:
        UserError: the image does not have the size that it had when it was placed.
    """
    size = (placement.height, placement.width)
    if scaled_size((image.height, image.width), size) != (placement.scaled_height, placement.scaled_width):
        raise UserError(
            f"an image is {image.width} x {image.height} pixels and had another shape when the data was read",
            "do not change the data during a run; start again",
        )
    pixel_values = image_to_tensor(resize_and_crop(image, *size, crop=_position(placement, crop)))
    return pixel_values.flip(-1) if flip else pixel_values


def transform_mask(
    mask: Image.Image,
    placement: Placement,
    crop: int = 0,
    flip: bool = False,
    *,
    pixels_per_latent: int,
) -> Tensor:
    """The same crop of a mask, averaged over the pixels of each latent: [1, h, w] in [0, 1], 1 where the mask is white.

    The mask may have another resolution than its image.

    Raises:
        UserError: the mask has another aspect ratio than the image, or `pixels_per_latent` does not divide the size.
    """
    height, width = placement.height, placement.width
    if height % pixels_per_latent or width % pixels_per_latent:
        raise UserError(f"{width} x {height} pixels", f"choose multiples of {pixels_per_latent}")
    _check_shape("a mask", mask, placement)
    box = _box(mask.size, placement, crop)
    grey = mask.convert("L").resize((width, height), Image.Resampling.BOX, box=box)
    values = np.asarray(grey, dtype=np.int64)
    cells = values.reshape(
        height // pixels_per_latent, pixels_per_latent, width // pixels_per_latent, pixels_per_latent
    )
    # sums of integers are exact on every machine
    means = torch.from_numpy(cells.mean(axis=(1, 3)) / 255).float()[None]
    return means.flip(-1) if flip else means


_RESAMPLING: dict[ImageKind, Image.Resampling] = {
    "photo": Image.Resampling.LANCZOS,
    "control": Image.Resampling.BOX,
    "mask": Image.Resampling.BOX,
    "labels": Image.Resampling.NEAREST,
}


def transform_input(
    image: Image.Image,
    placement: Placement,
    crop: int = 0,
    flip: bool = False,
    *,
    kind: ImageKind = "photo",
) -> Tensor:
    """The same crop of a further image, which may have another resolution than the main image.

    Returns:
        For a photo [3, H, W] in [-1, 1], equal to what `transform_image` returns for the same image. For a mask
        [1, H, W] in [0, 1], 1 where it is white. For other kinds [3, H, W] in [0, 1].

    Raises:
        UserError: it has another aspect ratio than the main image.
    """
    _check_shape("an image", image, placement)
    image = image.convert("L" if kind == "mask" else "RGB")
    size, box = (placement.width, placement.height), _box(image.size, placement, crop)
    cut = image.resize(size, _RESAMPLING[kind], box=box)
    values = image_to_tensor(cut) if kind == "photo" else _unit_tensor(cut)
    return values.flip(-1) if flip else values


def _unit_tensor(image: Image.Image) -> Tensor:
    """A grey or RGB image as [1, H, W] or [3, H, W], float32 in [0, 1]."""
    values = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1) / 255.0
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _check_shape(what: str, image: Image.Image, placement: Placement) -> None:
    """Refuse an image whose aspect ratio is not that of the placed image, up to rounding."""
    shape = placement.scaled_width / placement.scaled_height
    rounding = 1 / min(image.size) + 1 / min(placement.scaled_height, placement.scaled_width)
    if abs(image.width / image.height / shape - 1) > _SHAPE_TOLERANCE + rounding:
        raise UserError(
            f"{what} is {image.width} x {image.height} pixels and has another shape than its image",
            "give it the image's size",
        )


def transform_key(placement: Placement, crop: int = 0, flip: bool = False, background: Color = WHITE) -> str:
    """Everything besides the image that determines its pixel values, as one line of text; part of a cache key.

    Crops at the same position have the same key, whatever their index.
    """
    top, left = (f"{position!r}" for position in _position(placement, crop))
    return (
        f"transform={TRANSFORM_VERSION} size={placement.height}x{placement.width} crop={top},{left} "
        f"flip={int(flip)} background={','.join(str(int(part)) for part in background)}"
    )


def crop_corner(
    image_size: tuple[int, int], placement: Placement, crop: int = 0, flip: bool = False
) -> tuple[float, float]:
    """Top and left of a crop in the scaled image, as `transform_image` cuts it: mostly not at a whole pixel.

    A flipped crop's left side is that of the flipped image, whose right side the crop was nearest to.

    Args:
        image_size: height and width of the upright image. `placement` has the scaled one in whole pixels.
    """
    height, width = image_size
    scale = max(placement.height / height, placement.width / width)
    vertical, horizontal = _position(placement, crop)
    left = (1 - horizontal if flip else horizontal) * (width * scale - placement.width)
    return vertical * (height * scale - placement.height), left


def _position(placement: Placement, crop: int) -> tuple[float, float]:
    """The position of a crop as fractions of the slack (vertical, horizontal); 1/2 where it cannot move."""
    vertical, horizontal = (
        0.5 if crop == 0 or not slack else offset / slack
        for offset, slack in zip(placement.crops[crop], placement.slack, strict=True)
    )
    return vertical, horizontal


def _box(image_size: tuple[int, int], placement: Placement, crop: int) -> tuple[float, float, float, float]:
    """The part of an image (width, height) that `resize_and_crop` keeps for a crop, in pixels of that image."""
    image_width, image_height = image_size
    vertical, horizontal = _position(placement, crop)
    width = min(float(image_width), image_height * placement.width / placement.height)
    height = min(float(image_height), image_width * placement.height / placement.width)
    top, left = vertical * (image_height - height), horizontal * (image_width - width)
    return left, top, min(left + width, image_width), min(top + height, image_height)
