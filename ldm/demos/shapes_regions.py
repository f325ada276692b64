"""From the pixels of an image of drawn shapes to its regions of ink, one per thing.

Axis letters: H W pixels. Pixels are [H, W, 3] in float32, 0 to 255.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.demos.shapes import COLOURS

READING_SIZE_PX = 64
"""Larger images are reduced to this side first."""
FAINTEST = 45.0
"""A colour closer than this to the background (Euclidean, RGB) does not count as ink."""

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Labels = NDArray[np.intp]
Point = tuple[float, float]


def read_pixels(image: Image.Image) -> Array:
    """The pixels [H, W, 3] of an image of any mode, reduced to at most READING_SIZE_PX high and wide."""
    image = image.convert("RGB")
    if max(image.size) > READING_SIZE_PX:
        image.thumbnail((READING_SIZE_PX, READING_SIZE_PX), Image.Resampling.BOX)
    return np.asarray(image, np.float32)


def rim_colour(pixels: Array) -> Array:
    """The background colour [3]: the median along the image's border, where no things are."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    return np.asarray(np.median(rim, axis=0), np.float32)


def smooth(values: Array) -> Array:
    """Apply a 3x3 binomial filter to [H, W, ...], repeating the border."""
    for axis in (0, 1):
        lines = values.swapaxes(0, axis)
        padded = np.concatenate([lines[:1], lines, lines[-1:]])
        values = ((padded[:-2] + 2 * lines + padded[2:]) / 4).swapaxes(0, axis)
    return values


def ink_of(pixels: Array, background: Array) -> Array:
    """How much of each pixel is ink, [H, W] from 0 to 1: its position between the background and a colour.

    The nearest of the eight lines from background to colour counts. The lines meet only near the background, so a soft
    edge of red on white is not mistaken for pink. Pixels paler than half a colour stay below 1/2.
    """
    ways = np.array(list(COLOURS.values()), np.float32) - background
    ways = ways[np.linalg.norm(ways, axis=1) > FAINTEST]
    lengths = (ways**2).sum(1)
    along = (pixels - background) @ ways.T
    fractions = np.clip(along / lengths, 0, 1)
    errors = fractions * (fractions * lengths - 2 * along)
    nearest = errors.argmin(2)[..., None]
    return np.asarray(np.take_along_axis(fractions, nearest, 2)[..., 0], np.float32)


def amount_of(pixels: Array, background: Array, colour: Array) -> Array:
    """How much of `colour` each pixel has over the background, [H, W]; noise can push it below 0 or above 1."""
    way = colour - background
    return np.asarray((pixels - background) @ way / max(float(way @ way), 1.0), np.float32)


def label_regions(mask: Mask) -> Labels:
    """Regions connected by pixel edges, numbered 1, 2, ...; 0 elsewhere.

    The smallest label spreads until stable. A label is the index of a pixel of its region, so each step also takes that
    pixel's label, which halves the way that is left.
    """
    far = mask.size
    labels = np.where(mask, np.arange(far).reshape(mask.shape), far)
    while True:
        padded = np.pad(labels, 1, constant_values=far)
        around = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:], labels]
        spread = np.where(mask, np.minimum.reduce(around), far)
        if (spread == labels).all():
            break
        labels = np.append(spread.ravel(), far)[spread]
    numbers = np.unique(labels[mask], return_inverse=True)[1]
    labels[mask], labels[~mask] = numbers + 1, 0
    return labels


def grow(mask: Mask, rim_px: int) -> Mask:
    """The mask, dilated by `rim_px` pixels, including corners."""
    for _ in range(rim_px):
        mask = smooth(mask.astype(np.float32)) > 0
    return mask


def bounds(mask: Mask) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, the last two past the end; the mask must not be empty."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def centroid(amount: Array) -> Point:
    """(x, y) in pixels from the upper left corner."""
    total = float(amount.sum())
    y, x = (np.arange(size, dtype=np.float32) + 0.5 for size in amount.shape)
    return float(amount.sum(0) @ x) / total, float(amount.sum(1) @ y) / total
